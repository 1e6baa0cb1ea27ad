"""CLIP-IQA against torchmetrics' default model, MUSIQ against pyiqa, and the messages if their weights are missing."""

from __future__ import annotations

import json
import math
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.paths import EXPECTED
from trainables.metrics import (
    METRICS,
    MUSIQ,
    MetricSet,
    MetricUnavailableError,
    build_metrics,
    ensure_available,
    resolve_metrics,
)

DATA = EXPECTED
CLIP_FILE = Path("hub/checkpoints/resnet50_clip.openai/open_clip_model.safetensors")
MUSIQ_FILE = Path("hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth")
NAMES = ("val/clip_iqa", "val/musiq")

ROUNDING = 1e-4
"""Relative error of a CLIP-IQA score, which amplifies the rounding of its embeddings a hundredfold: up to 2e-5 with the
kernels for SSE4.1 and AVX2."""


def clip_weight(name: str, shape: list[int]) -> Tensor:
    """The weight used on both sides of the comparison, exact in half precision like the released ones."""
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name == "token_embedding.weight":
        draw /= 8  # makes the prompts as close to each other as trained ones
    if name.endswith("running_var"):
        draw = 0.5 + draw.square()
    elif len(shape) > 1:
        draw /= math.sqrt(math.prod(shape[1:]))
    else:
        draw = 1 + 0.2 * draw if name.endswith("weight") else 0.1 * draw
    return draw.half().float()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(3, 3, 48, 40) in [0, 1]: blurred and noisy crops of photographs."""
    return load_file(DATA / "parity_sinsr_psnr_y.safetensors")["restored"].float().clamp(0, 1)


@pytest.fixture(scope="module")
def clip_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with a narrow CLIP, in the layout of the released one."""
    home = tmp_path_factory.mktemp("torch")
    with safe_open(DATA / "clip_iqa.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    (home / CLIP_FILE).parent.mkdir(parents=True)
    save_file({name: clip_weight(name, shape) for name, shape in shapes.items()}, home / CLIP_FILE)
    return home


@pytest.fixture
def clip(clip_home: Path, monkeypatch: pytest.MonkeyPatch) -> MetricSet:
    monkeypatch.setenv("TORCH_HOME", str(clip_home))
    return build_metrics(["val/clip_iqa"])


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_clip_iqa_equals_torchmetrics(clip: MetricSet, images: Tensor) -> None:
    expected = load_file(DATA / "clip_iqa.safetensors")
    side = METRICS["val/clip_iqa"].min_side
    for part, name in ((images, "whole"), (images[..., :side, :side], "smallest")):
        torch.testing.assert_close(clip(part, part)["val/clip_iqa"], expected[name], rtol=ROUNDING, atol=0)
    with pytest.raises(RuntimeError):
        clip.networks_of["val/clip_iqa"](images[..., : side - 1, : side - 1])


def test_clip_iqa_ignores_the_target(clip: MetricSet, images: Tensor) -> None:
    batch = clip(images, images)["val/clip_iqa"]
    assert torch.equal(clip(images, 1 - images)["val/clip_iqa"], batch)
    for i in range(len(images)):
        alone = clip(images[i : i + 1], images[:1])["val/clip_iqa"]
        torch.testing.assert_close(alone, batch[i : i + 1], rtol=ROUNDING, atol=0)
    broken = images.clone()
    broken[1, :, 20, 20] = torch.nan
    value = clip(broken, images)["val/clip_iqa"]
    assert value.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(value[::2], batch[::2], rtol=ROUNDING, atol=0)


def test_building_clip_iqa_keeps_the_random_state(clip_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(clip_home))
    state = torch.get_rng_state()
    MetricSet(["val/clip_iqa"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("content", ["half a file", "another network", "another shape"])
def test_wrong_clip_weights_are_named(content: str, clip_home: Path, empty_home: Path) -> None:
    path = empty_home / CLIP_FILE
    path.parent.mkdir(parents=True)
    if content == "half a file":
        path.write_bytes((clip_home / CLIP_FILE).read_bytes()[:1000])
    elif content == "another network":
        save_file({"weight": torch.zeros(2)}, path)
    else:
        state = load_file(clip_home / CLIP_FILE)
        save_file(state | {"visual.layer2.0.conv1.weight": torch.zeros(3, 3, 1, 1)}, path)
    with pytest.raises(MetricUnavailableError, match=f"{path} is not timm/resnet50_clip.openai") as error:
        MetricSet(["val/clip_iqa"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "file"), [("val/clip_iqa", CLIP_FILE), ("val/musiq", MUSIQ_FILE)])
def test_absent_metric_names_the_path_of_its_weights(name: str, file: Path, empty_home: Path) -> None:
    for attempt in (ensure_available, build_metrics, MetricSet):
        with pytest.raises(
            MetricUnavailableError, match=f"^{name} is absent: .*{empty_home / file}.* hf download"
        ) as e:
            attempt([name])
        assert "\n" not in str(e.value)
        assert f"--local-dir {(empty_home / file).parent}" in str(e.value)


def test_absent_metrics_share_one_note(empty_home: Path) -> None:
    choice = resolve_metrics("st_lpips", allow_download=False)
    assert choice.names == ("val/st_lpips",)
    (note,) = choice.notes
    assert all(name in note for name in NAMES) and len(note) < 100
    assert resolve_metrics("st_lpips", no_reference=False).notes == ()
    assert len(resolve_metrics("auto", allow_download=False).notes) == 2


def test_metrics_with_weights_are_reported(clip_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(clip_home))
    choice = resolve_metrics("st_lpips")
    assert choice.names == ("val/st_lpips", "val/clip_iqa")
    assert "val/clip_iqa" not in choice.notes[0] and "val/musiq" in choice.notes[0]
    assert resolve_metrics("none", no_reference=False).names == ()


def test_musiq_without_pyiqa_is_absent(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyiqa", "pyiqa.archs", "pyiqa.archs.musiq_arch"):
        monkeypatch.setitem(sys.modules, module, None)  # like a module that is not installed
    (empty_home / MUSIQ_FILE).parent.mkdir(parents=True)
    (empty_home / MUSIQ_FILE).touch()
    with pytest.raises(MetricUnavailableError, match="val/musiq is absent: pyiqa cannot be imported"):
        MUSIQ()
    assert "val/musiq" not in resolve_metrics("none").names


def test_musiq_equals_pyiqa(images: Tensor, empty_home: Path) -> None:
    pyiqa = pytest.importorskip("pyiqa", reason="pyiqa is optional and not installed")
    path = empty_home / MUSIQ_FILE
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    fresh = pyiqa.create_metric("musiq", pretrained=False, device="cpu").net
    torch.save(fresh.state_dict(), path)
    assert "val/musiq" in resolve_metrics("none").names
    state = torch.get_rng_state()
    metrics = build_metrics(["val/musiq"])
    assert torch.equal(torch.get_rng_state(), state)
    package = pyiqa.create_metric("musiq", pretrained_model_path=str(path), device="cpu")
    torch.testing.assert_close(metrics(images, images)["val/musiq"], package(images).flatten(), rtol=1e-5, atol=0)
    path.write_bytes(b"half a file")
    with pytest.raises(MetricUnavailableError, match=f"{path} cannot be read"):
        MetricSet(["val/musiq"])
