"""Preparation: each stage depends only on the settings in its key, and is made once."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.preparation import TAUGHT, made_by
from trainables.common.errors import InputError
from trainables.data.prepare import REJECTED, prepare
from trainables.data.prepared import Prepared
from trainables.data.stages.needed import needed_stages
from trainables.data.stages.stage import pair_noise
from trainables.data.stores.shard_format import MANIFEST, shard_name
from trainables.data.stores.store import Store
from trainables.images.sources.photographs import load_photographs
from trainables.images.tensors import to_tensor, upsample
from trainables.methods.build import build_method, method_class
from trainables.methods.shared.first_stage import first_stage_settings
from trainables.networks.autoencoder import encode
from trainables.pretrained.autoencoders import load_autoencoder
from trainables.pretrained.resshift import build_diffusion, load_teacher
from trainables.pretrained.shipped import SHIPPED_AUTOENCODER
from trainables.settings import TrialSettings, override

ALL = {f"{split} {stage}" for split in ("train", "validation") for stage in ("pairs", "latents")} | {"train targets"}


def stores(settings: TrialSettings, columns: frozenset[str] = TAUGHT, test: bool = False) -> dict[str, str]:
    """Stage -> name of its store; makes none."""
    stages = needed_stages(settings, "root", columns, test=test)
    return {f"{stage.split} {stage.name}": stage.folder.name for stage in stages}


def other_autoencoder(folder: Path) -> str:
    """The shipped autoencoder with one weight changed."""
    with safe_open(SHIPPED_AUTOENCODER, "pt") as file:
        metadata = file.metadata()
    weights = load_file(SHIPPED_AUTOENCODER)
    weights["quant_conv.bias"] = weights["quant_conv.bias"] + 0.01
    save_file(weights, folder / "other.safetensors", metadata)
    return str(folder / "other.safetensors")


@pytest.mark.parametrize(
    ("changes", "remade"),
    [
        ({"training.seed": 1, "training.max_steps": 3, "training.batch_size": 2}, set()),
        ({"sinsr.inversion": 0.1, "sinsr.ground_truth": 10.0}, set()),
        ({"data.verify": False, "training.gradient_checkpointing": True}, set()),
        ({"sinsr.draws": 1}, {"train targets"}),
        ({"resshift.kappa": 4.0}, {"train targets"}),
        ({"resshift.bounded": True}, {"train targets"}),
        ({"pairs.sharpened": True}, {"train pairs", "train latents", "train targets"}),
        ({"pairs.crop": "random"}, {"train pairs", "train latents", "train targets"}),
        ({"data.seed": 1}, {"train pairs", "train latents", "train targets"}),
        ({"pairs.train_pairs": 7}, {"train pairs", "train latents", "train targets"}),
        ({"pairs.validation_pairs": 2}, {"validation pairs", "validation latents"}),
        ({"pairs.validation_size": 128}, {"validation pairs", "validation latents"}),
        ({"pairs.degradation.jpeg_range": (50, 60)}, ALL),
        ({"pairs.degradation.smallest_blur_kernel": 5}, ALL),
    ],
)
def test_change_remakes_only_dependent_stages(tiny: TrialSettings, changes: dict[str, Any], remade: set[str]) -> None:
    before, after = stores(tiny), stores(override(tiny, changes))
    assert set(before) == set(after) == ALL
    assert {stage for stage in ALL if before[stage] != after[stage]} == remade


def test_test_pairs_are_prepared_like_validation_pairs(tiny: TrialSettings) -> None:
    tested = {"test pairs", "test latents"}
    before = stores(tiny, test=True)
    assert set(before) == ALL | tested and {name: before[name] for name in ALL} == stores(tiny)
    for name, value, remade in (
        ("pairs.test_pairs", 5, tested),
        ("pairs.test_size", 32, tested),
        ("pairs.test_size", tiny.pairs.validation_size, set()),
        ("data.test_share", 0.2, ALL | tested),
    ):
        after = stores(override(tiny, {name: value}), test=True)
        assert {stage for stage in before if before[stage] != after[stage]} == remade


def test_split_of_version_01_keeps_its_keys(tiny: TrialSettings) -> None:
    """So a run of it can be resumed, and its stores serve again."""
    before = needed_stages(override(tiny, {"data.test_share": 0}), "root", TAUGHT)
    assert not any({"test_share", "validation_share"} & stage.key.keys() for stage in before)
    assert all("test_share" in stage.key for stage in needed_stages(tiny, "root", TAUGHT))


def test_a_trial_reads_test_pairs_only_if_it_is_given_them(tiny: TrialSettings, tmp_path: Path) -> None:
    settings = override(tiny, {"pairs.test_pairs": 6, "pairs.test_size": 32})
    assert prepare(settings, tmp_path, TAUGHT).test is None
    prepared = prepare(settings, tmp_path, TAUGHT, test=True)
    assert prepared.test is not None and prepared.test.test is None
    photographs = load_photographs("sample", "test").names
    assert {name.split("@")[0] for name in prepared.test.validation_names} == set(photographs)
    assert prepared.test.validation("target")["target"].shape == (6, 3, 32, 32)
    assert prepared.test.validation_noise == prepared.test.validation("latent").columns["latent"].shape == (8, 8, 8)
    assert prepared.validation_names != prepared.test.validation_names


def test_another_autoencoder_remakes_latents_and_targets(tiny: TrialSettings, tmp_path: Path) -> None:
    after = stores(override(tiny, {"autoencoder.weights": other_autoencoder(tmp_path)}))
    assert {stage for stage, name in stores(tiny).items() if after[stage] != name} == {
        "train latents",
        "train targets",
        "validation latents",
    }
    # The file's content matters, not its name.
    shutil.copy(SHIPPED_AUTOENCODER, tmp_path / "copy.safetensors")
    assert stores(override(tiny, {"autoencoder.weights": str(tmp_path / "copy.safetensors")})) == stores(tiny)


def test_only_needed_stages_are_planned(tiny: TrialSettings) -> None:
    validation = {"validation pairs", "validation latents"}
    assert set(stores(tiny, frozenset({"target", "degraded", "fresh_noise"}))) == validation | {"train pairs"}
    assert set(stores(tiny, frozenset({"latent", "uniform"}))) == validation | {"train pairs", "train latents"}


def test_method_without_latents_shares_the_pairs(tiny: TrialSettings) -> None:
    pairs = {"train pairs", "validation pairs"}
    for method in ("pix2pix", "pixel_diffusion"):
        settings = override(tiny, {"method": method})
        found = stores(settings, method_class(method).columns(settings))
        assert found == {stage: name for stage, name in stores(tiny).items() if stage in pairs}


def test_pairs_depend_on_the_simulator(tiny: TrialSettings) -> None:
    changes: dict[str, dict[str, Any]] = {
        "degradation": {"pairs.degradation.jpeg_range": (50, 60)},
        "print": {"pairs.print.exposure": (0.9, 1.1)},
    }
    same_size = override(tiny, {"method": "pix2pix", "pairs.scale": 1})
    for simulator, read in (("super_resolution", "degradation"), ("print_to_camera", "print")):
        settings = override(same_size, {"pairs.simulator": simulator})
        before = stores(settings, frozenset({"target"}))
        for field, change in changes.items():
            assert (stores(override(settings, change), frozenset({"target"})) != before) == (field == read)


def test_stages_depend_on_content_of_base_and_first_stage(
    trial_of: Callable[[str], TrialSettings], base: Path, first_stage: Path, tmp_path: Path
) -> None:
    """A copy gives the same stages, one with another weight does not."""
    columns = frozenset({"target", "degraded", "restored"})
    settings = trial_of("ccsr")
    before = stores(settings, columns)
    everything = {f"{split} {stage}" for split in ("train", "validation") for stage in ("pairs", "latents")}
    assert set(before) == everything | {"train restored"}

    def remade(method: str = "ccsr", **changes: Any) -> set[str]:
        values = {name.replace("__", "."): value for name, value in changes.items()}
        after = stores(override(settings, {"method": method, **values}), columns)
        return {stage for stage, name in after.items() if before[stage] != name}

    assert remade(cfw__strength=0.1, ccsr__adversarial=0.1, training__seed=1, perceptual__weight=0.5) == set()
    assert remade(ccsr__t_max=0.9) == remade(first_stage__draws=1) == remade("stablesr_cfw") == {"train restored"}
    shutil.copytree(first_stage, tmp_path / "first_stage")
    assert remade(first_stage__weights=str(tmp_path / "first_stage")) == set()
    _change_one_weight(tmp_path / "first_stage" / "weights.safetensors")
    assert remade(first_stage__weights=str(tmp_path / "first_stage")) == {"train restored"}
    shutil.copytree(base, tmp_path / "base")
    assert remade(base__weights=str(tmp_path / "base")) == set()
    _change_one_weight(tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors")
    assert remade(base__weights=str(tmp_path / "base")) == {"train latents", "validation latents", "train restored"}


def test_trials_without_training_prepare_only_validation(trial_of: Callable[[str], TrialSettings]) -> None:
    """So that trials with other sampling timesteps do not each prepare training data."""
    settings = override(trial_of("ccsr"), {"training.max_steps": 0, "checkpoint": "best"})
    columns = frozenset({"target", "degraded", "restored"})
    found = stores(settings, columns)
    assert set(found) == {"validation pairs", "validation latents"}
    assert stores(override(settings, {"ccsr.t_max": 0.9}), columns) == found


def _change_one_weight(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] + 0.01}, path, metadata)


def test_restored_latents_equal_first_stage_samples(
    trial_of: Callable[[str], TrialSettings], prepared_for: Callable[[TrialSettings], Prepared]
) -> None:
    """Sampled by its own method from the noise of each draw, without the target."""
    settings = trial_of("stablesr_cfw")
    prepared = prepared_for(settings)
    restored = prepared.train("restored")["restored"]
    assert restored.shape == (8, 2, 4, 16, 16) and prepared.train_noise == (4, 16, 16)
    method = build_method(first_stage_settings(settings), torch.device("cpu"))
    method.networks.eval()
    rows = np.arange(8)
    degraded = torch.from_numpy(prepared.train("latent_degraded").rows("latent_degraded", rows)).float()
    for draw in range(2):
        noise = torch.from_numpy(np.stack([pair_noise(0, row, draw, (4, 16, 16)) for row in rows])).float()
        with torch.no_grad():
            expected = method.sample({"latent_degraded": degraded, "noise": noise})  # type: ignore[operator]
        np.testing.assert_allclose(restored[:, draw], expected, rtol=2e-3, atol=2e-3)


def test_planned_rows_and_bytes_match_the_stores(tiny: TrialSettings, prepared: Prepared, store_root: Path) -> None:
    for stage in needed_stages(tiny, store_root, TAUGHT):
        store = Store(stage.folder.local)
        assert (len(store), store.columns) == (stage.rows, stage.columns)
        # Besides the values, an Arrow file has a schema and a record of every batch.
        assert stage.bytes <= (stage.folder.local / shard_name(0)).stat().st_size <= stage.bytes + 20_000
        assert len(store.names) == (stage.rows if stage.name == "pairs" else 0)


def test_second_call_makes_nothing(tiny: TrialSettings, prepared: Prepared, store_root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store_root.rglob("*.*") if path.name != ".used"}
    assert made_by(tiny, store_root) == {}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_more_draws_reuse_pairs_and_latents(
    tiny: TrialSettings, prepared: Prepared, store_root: Path, tmp_path: Path
) -> None:
    """Existing draws do not change: each depends only on its own number."""
    shutil.copytree(store_root, tmp_path / "stores")
    more = override(tiny, {"sinsr.draws": 3})
    assert made_by(more, tmp_path / "stores") == {"train targets": 8}
    taught = prepare(more, tmp_path / "stores", TAUGHT).train("taught")["taught"]
    np.testing.assert_array_equal(taught[:, :2], prepared.train("taught")["taught"])


def test_preparing_twice_gives_the_same_bytes(
    tiny: TrialSettings, prepared: Prepared, store_root: Path, tmp_path: Path
) -> None:
    assert made_by(tiny, tmp_path) == {stage: 8 if "train" in stage else 3 for stage in ALL}
    for stage in needed_stages(tiny, store_root, TAUGHT):
        files = set(stage.folder.files()) - {".used"}
        assert {MANIFEST, shard_name(0)} <= files and (REJECTED in files) == (stage.name == "pairs")
        for file in files:
            assert (tmp_path / stage.folder.name / file).read_bytes() == (stage.folder.local / file).read_bytes()


def test_columns_have_the_documented_content(tiny: TrialSettings, prepared: Prepared) -> None:
    autoencoder = load_autoencoder(tiny.autoencoder.weights)
    device = torch.device("cpu")
    rows = np.arange(prepared.train_rows)
    target, degraded = (to_tensor(prepared.train(n).rows(n, rows), device) for n in ("target", "degraded"))
    assert target.shape == (8, 3, 64, 64) and degraded.shape == (8, 3, 16, 16)
    assert -1 <= target.min() < -0.5 and 0.5 < target.max() <= 1
    with torch.no_grad():
        latent, latent_degraded = encode(autoencoder, target), encode(autoencoder, upsample(degraded, 4))
    np.testing.assert_allclose(prepared.train("latent")["latent"], latent, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        prepared.train("latent_degraded")["latent_degraded"], latent_degraded, rtol=1e-3, atol=1e-3
    )
    noise = np.stack([[pair_noise(tiny.data.seed, row, draw, (8, 16, 16)) for draw in range(2)] for row in rows])
    np.testing.assert_array_equal(prepared.train("noise")["noise"], noise)
    assert abs(noise.astype(float).mean()) < 0.02 and abs(noise.astype(float).std() - 1) < 0.02


@torch.no_grad()
def test_taught_column_equals_teacher_samples(tiny: TrialSettings, prepared: Prepared) -> None:
    """From the stored noise and latents, which a student reads."""
    teacher, diffusion = load_teacher(tiny), build_diffusion(tiny.resshift)
    rows, device = np.arange(2), torch.device("cpu")
    degraded = to_tensor(prepared.train("degraded").rows("degraded", rows), device)
    y = to_tensor(prepared.train("latent_degraded").rows("latent_degraded", rows), device)
    for draw in range(2):
        noise = to_tensor(prepared.train("noise")["noise"][rows, draw], device)
        x0 = diffusion.sample_ddim(lambda x, t: teacher(x, t, lq=degraded), y, noise)
        np.testing.assert_allclose(prepared.train("taught")["taught"][rows, draw], x0, rtol=2e-3, atol=2e-3)


def test_validation_does_not_depend_on_seeds(tiny: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    other = override(tiny, {"data.seed": 5, "training.seed": 6, "pairs.train_pairs": 1})
    again = prepare(other, tmp_path, frozenset({"target"}))
    assert again.validation_names == prepared.validation_names
    for name in ("target", "degraded", "latent_degraded"):
        np.testing.assert_array_equal(again.validation(name)[name], prepared.validation(name)[name])
    assert again.validation_noise == prepared.validation_noise == (8, 16, 16)
    assert not np.array_equal(again.train("target")["target"][0], prepared.train("target")["target"][0])


def test_damaged_store_is_refused_until_deleted(
    tiny: TrialSettings, prepared: Prepared, store_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(store_root, tmp_path / "stores")
    (latents,) = (tmp_path / "stores").glob("latents-train-*")
    shard = latents / shard_name(0)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=f"{latents}: damaged store, .* delete the folder to prepare it again"):
        made_by(tiny, tmp_path / "stores")
    shutil.rmtree(latents)
    assert made_by(tiny, tmp_path / "stores") == {"train latents": 8}


def test_prepared_is_pickled_as_paths(prepared: Prepared) -> None:
    opened = prepared.train("target")
    sent = pickle.dumps(prepared)
    assert len(sent) < 5000
    received = pickle.loads(sent)
    np.testing.assert_array_equal(received.train("target")["target"], opened["target"])


def test_missing_weights_are_refused_before_preparation(tiny: TrialSettings, tmp_path: Path) -> None:
    for name in ("autoencoder.weights", "teacher.weights"):
        with pytest.raises(InputError, match=f"{name}=nowhere.pth: no such file; expected 'shipped' or a path"):
            prepare(override(tiny, {name: "nowhere.pth"}), tmp_path, TAUGHT)
    assert list(tmp_path.iterdir()) == []
