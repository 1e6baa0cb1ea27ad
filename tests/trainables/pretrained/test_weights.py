"""Weights: our files, official ones, and all others, which are refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.bases import tiny_unet
from trainables.common.errors import InputError
from trainables.networks.autoencoder import load_vq_f4, save_vq_f4
from trainables.pretrained.autoencoders import load_autoencoder
from trainables.pretrained.base_model import SHIPPED_BASE
from trainables.pretrained.finished_trial import SETTINGS, WEIGHTS
from trainables.pretrained.identity import resshift_identity, unequal, weights_fingerprint
from trainables.pretrained.resshift import build_network, count_parameters, load_teacher, load_teacher_weights
from trainables.pretrained.shipped import (
    SHIPPED_AUTOENCODER,
    SHIPPED_FIRST_STAGE,
    SHIPPED_TEACHER,
    autoencoder_path,
    shipped_checkpoint,
)
from trainables.pretrained.weights_file import describe, save_weights
from trainables.settings import TrialSettings, override


def saved(path: Path, settings: TrialSettings, kind: str = "resshift") -> Path:
    save_weights(path, build_network(settings.network).state_dict(), kind, resshift_identity(settings))
    return path


def taught_by(path: Path, settings: TrialSettings) -> TrialSettings:
    return override(settings, {"teacher.weights": str(path)})


def test_saving_and_loading_is_exact(small: TrialSettings, tmp_path: Path) -> None:
    source, target = build_network(small.network), build_network(small.network)
    path = tmp_path / "teacher.safetensors"
    save_weights(path, source.state_dict(), "resshift", resshift_identity(small), step="12")
    kind, architecture = describe(path)
    assert kind == "resshift" and unequal(architecture, resshift_identity(small)) == ""
    load_teacher_weights(target, taught_by(path, small))
    for name, values in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], values)


def test_differences_are_named_as_settings() -> None:
    """JSON turns tuples into lists; that is no difference."""
    architecture = {"lora.rank": 4, "lora.targets": ("to_q", "to_k"), "base": "0ab1"}
    assert unequal(json.loads(json.dumps(architecture)), architecture) == ""
    assert unequal({"lora.rank": 8, "lora.alpha": 1.0}, {"lora.rank": 4, "lora.dropout": 0.0}) == (
        "does not match: lora.rank is 8 in the file and 4 in the settings; "
        "lora.dropout is None in the file and 0.0 in the settings; "
        "lora.alpha is 1.0 in the file and None in the settings"
    )


def test_missing_shipped_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match=r"checkpoint=shipped: no checkpoint of sinsr is shipped; give --checkpoint"):
        shipped_checkpoint("sinsr")


def test_loaded_teacher_is_frozen(small: TrialSettings, tmp_path: Path) -> None:
    teacher = load_teacher(taught_by(saved(tmp_path / "t.safetensors", small), small))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    autoencoder = load_autoencoder("shipped")
    assert not autoencoder.training and not any(p.requires_grad for p in autoencoder.parameters())


def test_finished_trial_or_run_is_a_teacher(small: TrialSettings, tmp_path: Path) -> None:
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    (best / SETTINGS).write_text("{}")
    saved(best / WEIGHTS, small)
    teachers = [load_teacher(taught_by(path, small)).state_dict() for path in (best / WEIGHTS, best, best.parent)]
    for name, values in teachers[0].items():
        assert all(torch.equal(other[name], values) for other in teachers[1:])


def test_shipped_weights_fit_the_sample_preset(tiny: TrialSettings) -> None:
    kind, shape = describe(SHIPPED_TEACHER)
    assert kind == "resshift"
    assert tuple(shape["network.channel_mult"]) == tiny.network.channel_mult
    teacher = load_teacher(tiny)
    assert sum(p.numel() for p in teacher.parameters()) == count_parameters(tiny.network)
    assert SHIPPED_TEACHER.stat().st_size + SHIPPED_AUTOENCODER.stat().st_size < 16 * 2**20


@pytest.mark.parametrize("wrapped", [False, True])
def test_official_checkpoint_is_loaded(small: TrialSettings, tmp_path: Path, wrapped: bool) -> None:
    source = build_network(small.network)
    state: dict[str, Any] = dict(source.state_dict())
    # The official network stores these as buffers; ours computes them.
    state["middle_block.1.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64, dtype=torch.int64)
    state["middle_block.1.blocks.1.attn_mask"] = torch.zeros(4, 64, 64)
    if wrapped:
        state = {"state_dict": {f"module.{name}": values for name, values in state.items()}}
    torch.save(state, tmp_path / "resshift.pth")
    teacher = load_teacher(taught_by(tmp_path / "resshift.pth", small))
    for name, values in source.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], values)


class _Payload:
    """Runs a command if it is unpickled without protection."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def _truncated(path: Path, settings: TrialSettings) -> Path:
    saved(path, settings)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def _with_another_autoencoder(folder: Path, settings: TrialSettings) -> TrialSettings:
    path = folder / "autoencoder.safetensors"
    model = load_vq_f4(SHIPPED_AUTOENCODER)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    save_vq_f4(model, path)
    return override(settings, {"autoencoder.weights": str(path)})


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _torch_saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


BROKEN: dict[str, tuple[Callable[[Path, TrialSettings], Path], str]] = {
    "another method": (
        lambda folder, trial: saved(folder / "x.safetensors", trial, "sinsr"),
        "weights of 'sinsr'; expected those of 'resshift'",
    ),
    "somebody else's": (
        lambda folder, trial: (save_file({"a": torch.zeros(1)}, folder / "x.safetensors"), folder / "x.safetensors")[1],
        "weights of 'unknown'; expected those of 'resshift'",
    ),
    "an autoencoder": (lambda folder, trial: SHIPPED_AUTOENCODER, "weights of 'unknown'; expected those of 'resshift'"),
    "another shape": (
        lambda folder, trial: saved(
            folder / "x.safetensors", override(trial, {"network.swin_embed_dim": 64, "network.swin_depth": 4})
        ),
        r"does not match: network.swin_depth is 4 in the file and 2 in the settings; "
        r"network.swin_embed_dim is 64 in the file and 32 in the settings",
    ),
    "another schedule": (
        lambda folder, trial: saved(folder / "x.safetensors", override(trial, {"resshift.power": 0.5})),
        r"does not match: resshift.power is 0.5 in the file and 0.3 in the settings$",
    ),
    "a schedule of an earlier version, which does not say bounded": (
        lambda folder, trial: saved(folder / "x.safetensors", override(trial, {"resshift.bounded": True})),
        r"does not match: resshift.bounded is True in the file and False in the settings$",
    ),
    "another autoencoder": (
        lambda folder, trial: saved(folder / "x.safetensors", _with_another_autoencoder(folder, trial)),
        r"does not match: autoencoder is \w{8}... in the file and \w{8}... in the settings$",
    ),
    "another shape, undescribed": (
        lambda folder, trial: _torch_saved(
            folder / "x.pth", build_network(override(trial.network, {"swin_embed_dim": 64})).state_dict()
        ),
        "not a checkpoint of this network: .*size mismatch for middle_block.1",
    ),
    "truncated": (
        lambda folder, trial: _truncated(folder / "x.safetensors", trial),
        "not a checkpoint of this network",
    ),
    "empty": (lambda folder, trial: _written(folder / "x.safetensors", b""), "not a checkpoint of this network"),
    "a text": (lambda folder, trial: _written(folder / "x.txt", b"see below\n"), "not a checkpoint of this network"),
    "a number": (lambda folder, trial: _torch_saved(folder / "x.pth", 3), "not a checkpoint of this network"),
    "a folder": (lambda folder, trial: folder, "not a checkpoint of this network"),
    "missing": (lambda folder, trial: folder / "x.pth", "no such file; expected 'shipped' or a path"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_teacher_is_refused_in_one_line(case: str, small: TrialSettings, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    path = make(tmp_path, small)
    with pytest.raises(InputError, match=message) as caught:
        load_teacher(taught_by(path, small))
    text = str(caught.value)
    assert text.startswith(f"teacher.weights={path}: ") and "\n" not in text and len(text) < 500


@pytest.mark.parametrize("case", ["a text", "a number", "empty", "truncated", "another method", "missing", "a folder"])
def test_wrong_autoencoder_is_refused_in_one_line(case: str, small: TrialSettings, tmp_path: Path) -> None:
    path = BROKEN[case][0](tmp_path, small)
    with pytest.raises(InputError) as caught:
        load_autoencoder(str(path))
    text = str(caught.value)
    assert text.startswith(f"autoencoder.weights={path}: ") and "\n" not in text and len(text) < 500
    if path.suffix == ".txt":
        path = path.rename(path.with_suffix(".pth"))
        with pytest.raises(InputError, match=f"autoencoder.weights={path}: not a VQ-f4 autoencoder: "):
            load_autoencoder(str(path))


def test_diffusers_autoencoder_is_read_strictly(tmp_path: Path) -> None:
    whole = load_vq_f4(SHIPPED_AUTOENCODER)
    whole.save_pretrained(tmp_path)
    for name, values in load_autoencoder(str(tmp_path)).state_dict().items():
        assert torch.equal(whole.state_dict()[name], values)

    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    gone = "encoder.conv_in.weight"
    for changed, message in (
        ({name: values for name, values in state.items() if name != gone}, f"1 weights missing: {gone}"),
        (state | {"extra": torch.zeros(1)}, "1 weights unexpected: extra"),
        (state | {gone: torch.zeros(1)}, "encoder.conv_in.weight"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(InputError, match=message) as caught:
            load_autoencoder(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_checkpoint_cannot_run_code(small: TrialSettings, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": _Payload(f"touch '{mark}'")}, path)
    for load in (lambda: load_teacher(taught_by(path, small)), lambda: load_autoencoder(str(path))):
        with pytest.raises(InputError, match=r"evil\.pth: not a"):
            load()
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Payload(f"touch '{mark}'")))  # without protection it would run
    assert mark.exists()


def test_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vq.pth").touch()
    assert autoencoder_path("~/vq.pth") == tmp_path / "vq.pth"
    assert autoencoder_path("shipped") == SHIPPED_AUTOENCODER


@pytest.mark.parametrize(
    ("config", "weights"), [("config.json", "diffusion_pytorch_model.safetensors"), (SETTINGS, WEIGHTS)]
)
def test_fingerprint_follows_the_content(config: str, weights: str, tmp_path: Path) -> None:
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / config).write_bytes(b"{}")
        (tmp_path / folder / weights).write_bytes(content)
    a, b, c = (weights_fingerprint(tmp_path / folder) for folder in "abc")
    assert a == b != c
    assert weights_fingerprint(tmp_path / "a" / weights) == weights_fingerprint(tmp_path / "b" / weights)
    assert len({a, weights_fingerprint(tmp_path / "a" / weights), weights_fingerprint(tmp_path / "a" / config)}) == 3
    (tmp_path / "b" / config).write_bytes(b"{ }")
    assert weights_fingerprint(tmp_path / "b") != a


def test_shipped_trials_name_the_shipped_base() -> None:
    """By the hashes of its parts' files, one after the other; the parts contain only files that are read."""
    _, architecture = describe(SHIPPED_FIRST_STAGE / WEIGHTS)
    for name, part in (("base", "unet"), ("base's autoencoder", "vae"), ("base's scheduler", "scheduler")):
        files = sorted((SHIPPED_BASE / part).iterdir())
        whole = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
        assert weights_fingerprint(SHIPPED_BASE / part) == architecture[name] == whole


@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_unread_files_do_not_change_the_fingerprint(shard: str, tmp_path: Path) -> None:
    """A hub cache also contains files that other programs downloaded."""
    tiny_unet().save_pretrained(tmp_path, max_shard_size=shard)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard == "200KB")
    before = weights_fingerprint(tmp_path)
    others = ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "README.md")
    single = () if len(shards) == 1 else ("diffusion_pytorch_model.safetensors",)  # diffusers prefers the shards
    for name in (*others, "diffusion_pytorch_model.non_ema.safetensors", *single):
        (tmp_path / name).write_bytes(b"another variant")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").write_bytes(b"{}")
    assert weights_fingerprint(tmp_path) == before
    for file in (*shards, tmp_path / "config.json"):
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert weights_fingerprint(tmp_path) != before
        file.write_bytes(content)
    assert weights_fingerprint(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_head_channels": 48}, "network: num_head_channels is 48; it must divide swin_embed_dim, 32"),
        ({"swin_embed_dim": 48}, "network: .*swin_embed_dim 48; all must be positive multiples of 32"),
        ({"channel_mult": (), "num_res_blocks": ()}, r"network.channel_mult=\(\): expected 1 to 8 levels"),
        ({"window_size": 6}, "network: window_size is 6; windows must tile image_size, 16"),
    ],
)
def test_invalid_network_is_refused(small: TrialSettings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        count_parameters(override(small.network, changes))
