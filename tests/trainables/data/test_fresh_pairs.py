"""With `pairs.degraded=online` every epoch has other degradations, equal for all trials, workers and restarts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.loop import VARIANTS, VariantOf, assert_same, run, state_of
from trainables.common.errors import InputError
from trainables.data.batches import TrainingBatches
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.data.stages.needed import needed_stages
from trainables.images.degradations.degradation import degrade
from trainables.images.simulation import degraded_anew
from trainables.images.tensors import upsample
from trainables.methods.build import build_method, method_class
from trainables.methods.shared.encoding import Encoding
from trainables.settings import TrialSettings, override
from trainables.settings.pairs import PairSettings

CPU = torch.device("cpu")
ONLINE = {"pairs.degraded": "online"}
IMAGES = {"target", "degraded"}


@pytest.fixture(scope="module")
def online(tiny: TrialSettings) -> TrialSettings:
    """A trial that reads images only: 8 pairs, two steps an epoch."""
    return override(tiny, {"method": "pix2pix", "training.max_steps": 40, **ONLINE})


@pytest.fixture(scope="module")
def targets(online: TrialSettings, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(online, tmp_path_factory.mktemp("stores"), IMAGES)


def read(
    prepared: Prepared,
    settings: TrialSettings,
    steps: Sequence[int],
    columns: Collection[str] = IMAGES,
    world: int = 1,
) -> list[dict[str, Tensor]]:
    workers = [TrainingBatches(prepared, settings, columns, CPU, rank, world) for rank in range(world)]
    parts = [[worker(step) for worker in workers] for step in steps]
    return [{name: torch.cat([part[name] for part in step]) for name in step[0]} for step in parts]


def by_target(batches: Sequence[dict[str, Tensor]]) -> dict[bytes, bytes]:
    """Target -> degraded image, of one epoch."""
    found = {
        target.numpy().tobytes(): degraded.numpy().tobytes()
        for batch in batches
        for target, degraded in zip(batch["target"], batch["degraded"], strict=True)
    }
    assert len(found) == sum(len(batch["target"]) for batch in batches)
    return found


def test_store_holds_the_targets_of_prepared_pairs_alone(
    online: TrialSettings, targets: Prepared, tmp_path: Path
) -> None:
    plain = override(online, {"pairs.degraded": "prepared"})
    pairs_before = prepare(plain, tmp_path, IMAGES)
    assert set(targets.train("target").columns) == {"target"}
    assert np.array_equal(targets.train("target")["target"], pairs_before.train("target")["target"])
    assert targets.validation_stores["pairs"].split("/")[-1] == pairs_before.validation_stores["pairs"].split("/")[-1]
    # Only the store of validation pairs depends on the degradation.
    (pairs, validation), (other, other_validation) = (
        needed_stages(override(online, {"pairs.degradation.jpeg_range": end}), tmp_path, IMAGES)
        for end in ((30.0, 95.0), (40.0, 90.0))
    )
    assert pairs.folder.name == other.folder.name and validation.folder.name != other_validation.folder.name


def test_every_epoch_has_other_degradations_equal_for_all_trials(online: TrialSettings, targets: Prepared) -> None:
    """Whatever the trial's seed, batch size, number of workers, and the step at which it resumes."""
    first = read(targets, online, range(6))
    epochs = [by_target(first[2 * epoch : 2 * epoch + 2]) for epoch in range(3)]
    assert epochs[0].keys() == epochs[1].keys() == epochs[2].keys() and len(epochs[0]) == 8
    for target in epochs[0]:
        assert len({epoch[target] for epoch in epochs}) == 3

    other = override(online, {"training.seed": 1, "training.batch_size": 8})
    for epoch in range(3):
        assert by_target(read(targets, other, [epoch])) == epochs[epoch]
    for one, two in zip(first, read(targets, online, range(6), world=2), strict=True):
        assert_same(one, two)
    for step in (5, 2):
        assert_same(read(targets, online, [step])[0], first[step])
    assert by_target(read(targets, override(online, {"data.seed": 1}), range(2))) != epochs[0]


def test_degradations_continue_through_an_epoch_that_ends_within_a_batch(
    online: TrialSettings, targets: Prepared
) -> None:
    uneven = read(targets, override(online, {"training.batch_size": 3}), range(8))
    whole = read(targets, override(online, {"training.batch_size": 8}), range(3))
    for name in IMAGES:
        assert torch.equal(*(torch.cat([batch[name] for batch in batches]) for batches in (uneven, whole)))


def test_degraded_image_is_aligned_and_has_the_prepared_strength(online: TrialSettings, targets: Prepared) -> None:
    """The same simulator: where nothing is random but JPEG's place, only that differs from the prepared image."""
    target = np.ascontiguousarray(targets.train("target")["target"][0].transpose(1, 2, 0))
    still: dict[str, Any] = {
        "kernel_prob": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        "sinc_prob": 0.0,
        "blur_sigma": (0.2, 0.21),
        "resize_prob": (0.0, 0.0, 1.0),
        "noise_range": (0.0, 0.0),
        "gaussian_noise_prob": 1.0,
        "jpeg_range": (99.0, 100.0),
        "jpeg_range2": (99.0, 100.0),
        "second_order_prob": 0.0,
        "final_sinc_prob": 0.0,
    }
    settings = override(online, {f"pairs.degradation.{name}": value for name, value in still.items()}).pairs
    small = np.asarray(Image.fromarray(target).resize((16, 16), Image.Resampling.BOX)).astype(float)
    for row in range(8):
        found = degraded_anew(target, settings, 0, 0, row).astype(float)
        shifted = [np.abs(np.roll(found, (y, x), (0, 1)) - small).mean() for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert found.shape == (16, 16, 3) and int(np.argmin(shifted)) == 4
    # Without a margin it is the simulator itself.
    plain = PairSettings(crop="random")
    expected = degrade(target, plain.degradation, np.random.default_rng([5, 1002, 3, 7]), 4)
    assert np.array_equal(degraded_anew(target, plain, 5, 3, 7), expected)


@pytest.mark.parametrize(
    ("method", "changes", "encoded"),
    [
        ("resshift", {}, {"latent_degraded"}),
        ("one_step", {"pairs.flips": "turned"}, {"latent_degraded"}),
        ("stablesr", {"pairs.flips": "mirrored", "pairs.undamaged": 0.3}, {"latent", "latent_degraded"}),
        ("stablesr", {"pairs.undamaged": 0.3}, {"latent_degraded"}),
    ],
)
def test_latents_are_encoded_in_the_step(
    method: str,
    changes: dict[str, Any],
    encoded: set[str],
    trial_of: Callable[[str], TrialSettings],
    prepared_for: Callable[[TrialSettings], Prepared],
) -> None:
    """Those of the target stay prepared if it is not turned. Of undamaged pairs both are the target's."""
    settings = override(trial_of(method), {**ONLINE, **changes, "training.batch_size": 8})
    columns, prepared = method_class(method).columns(settings), prepared_for(settings)
    made = build_method(settings, CPU)
    plain = TrainingBatches(prepared, settings, columns | {"latent"}, CPU)(1)
    batch = Encoding(made)(TrainingBatches(prepared, settings, columns, CPU)(1))
    assert columns <= set(batch) and encoded & set(plain) == set()
    images = TrainingBatches(prepared, settings, IMAGES, CPU)(1)
    encode = made.named_parts["autoencoder"].encode  # type: ignore[operator]
    with torch.no_grad():
        expected = {"latent": encode(images["target"]), "latent_degraded": encode(upsample(images["degraded"], 4))}
    for name in {"latent", "latent_degraded"} & columns:
        differs = (batch[name] - expected[name]).abs().flatten(1).amax(1)
        # Prepared latents are rounded to float16, of 11 binary digits.
        equal = differs <= (0 if name in encoded else 2**-11 * float(expected[name].abs().max()))
        clean = (batch[name] - expected["latent"]).abs().flatten(1).amax(1) < 2**-9 * float(expected[name].abs().max())
        assert bool((equal | clean).all())
        assert bool(equal.all()) == (name == "latent" or not settings.pairs.undamaged)


@pytest.mark.parametrize("variant", ["pixel_diffusion", "resshift"])
def test_interrupted_training_on_fresh_pairs_ends_like_an_uninterrupted_one(
    variant: str, variant_of: VariantOf, prepared_for: Callable[[TrialSettings], Prepared], tmp_path: Path
) -> None:
    """Of a method that reads pixels and of one that reads latents."""
    settings = variant_of(variant, {**ONLINE, "training.reports": 2, "pairs.validation_pairs": 1})
    prepared = prepared_for(settings)
    whole = run(settings, prepared, tmp_path / "whole")
    run(settings, prepared, tmp_path / "continued", tmp_path / "whole" / "2")
    assert_same(state_of(tmp_path / "continued" / "4"), state_of(tmp_path / "whole" / "4"))
    assert all(np.isfinite(value) for report in whole.metrics("loss/") for value in report.values())


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("sinsr", {}, "expected prepared, or sinsr.teaching=online: method=sinsr trains on 'taught', which"),
        ("ccsr", {}, "expected prepared: method=ccsr trains on 'restored', which is prepared from the degraded"),
        ("stablesr_cfw", {}, "expected prepared: method=stablesr_cfw trains on 'restored', which is prepared"),
        ("pix2pix", {"pairs.undamaged": 0.1}, "expected 0 with pairs.scale=4: method=pix2pix sees the degraded"),
    ],
)
def test_methods_that_need_prepared_degradations_are_refused(
    variant: str, changes: dict[str, Any], message: str, tiny: TrialSettings, tmp_path: Path
) -> None:
    settings = override(tiny, VARIANTS[variant] | ONLINE | changes)
    with pytest.raises(InputError) as refused:
        needed_stages(settings, tmp_path, method_class(settings.method).columns(settings))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_accepted_where_nothing_drawn_is_read(tiny: TrialSettings, tmp_path: Path) -> None:
    for changes in ({"sinsr.teaching": "online"}, {"sinsr.distillation": 0.0, "sinsr.inversion": 0.0}):
        settings = override(tiny, changes | ONLINE)
        stages = needed_stages(settings, tmp_path, method_class("sinsr").columns(settings))
        assert not {stage.name for stage in stages} & {"targets"}
    evaluated = override(tiny, {**ONLINE, "training.max_steps": 0, "checkpoint": "x"})
    assert needed_stages(evaluated, tmp_path, method_class("sinsr").columns(evaluated))


def test_paired_photographs_and_variants_are_refused(online: TrialSettings, tmp_path: Path) -> None:
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
        for number in range(4):
            Image.new("RGB", (64, 64)).save(tmp_path / side / f"{number}.png")
    with pytest.raises(InputError, match=r"pairs.degraded=online: expected prepared: data.source=.* holds pairs"):
        needed_stages(override(online, {"data.source": str(tmp_path)}), tmp_path, IMAGES)
    with pytest.raises(InputError, match=r"pairs\.variants=2: expected 1 with pairs\.degraded=online"):
        override(online, {"pairs.variants": 2})
