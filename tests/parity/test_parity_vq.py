"""The autoencoder with official weights against the official code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.models import VQModel
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.parity import relative_error
from tests.helpers.paths import EXPECTED
from trainables.networks.autoencoder import (
    build_vq_f4,
    convert_ldm_state_dict,
    decode,
    encode,
    load_vq_f4,
    quantise,
    save_vq_f4,
)

# Origin of the file: expected/README.md.
DATA_DIR = EXPECTED
DATA = load_file(DATA_DIR / "parity_vq.safetensors")


def official_state() -> dict[str, Tensor]:
    return {k.removeprefix("weights/"): v.float() for k, v in DATA.items() if k.startswith("weights/")}


@pytest.fixture(scope="module", params=["bare", "state_dict"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VQModel:
    path = tmp_path_factory.mktemp("vq") / "autoencoder_vq_f4.pth"
    state = official_state()
    torch.save(state if request.param == "bare" else {"state_dict": state}, path)
    return load_vq_f4(path)


@torch.no_grad()
def test_encode(model: VQModel) -> None:
    assert relative_error(encode(model, DATA["images"]), DATA["latents"]) < 1e-5


@torch.no_grad()
def test_quantise(model: VQModel) -> None:
    quantised = quantise(model, DATA["latents"])
    assert relative_error(quantised, DATA["quantised"]) < 1e-5
    codebook = model.quantize.embedding.weight
    assert torch.equal(quantised, codebook[DATA["codes"]].movedim(-1, 1))


@torch.no_grad()
def test_decode(model: VQModel) -> None:
    assert relative_error(decode(model, DATA["latents"]), DATA["decoded"]) < 1e-5


def test_straight_through_gradient(model: VQModel) -> None:
    latents = DATA["latents"].clone().requires_grad_()
    decode(model, latents, straight_through=True).square().mean().backward()
    assert latents.grad is not None
    # Forward and back, both sides in float32: 3.6e-6 with the kernels for SSE4.1 and AVX2.
    assert relative_error(latents.grad, DATA["decode_grad"]) < 2e-5


def test_quantisation_blocks_gradients_by_default(model: VQModel) -> None:
    latents = DATA["latents"].clone().requires_grad_()
    decode(model, latents).square().mean().backward()
    assert latents.grad is None


@torch.no_grad()
def test_codes_do_not_depend_on_autocast_or_chunking(model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.networks.autoencoder._DISTANCES_AT_ONCE", 1000)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(quantise(model, DATA["latents"]), DATA["quantised"]) < 1e-5


@pytest.mark.parametrize("kind", ["safetensors", "diffusers"])
def test_saved_and_loaded(model: VQModel, tmp_path: Path, kind: str) -> None:
    if kind == "safetensors":
        path = tmp_path / "vq.safetensors"
        save_vq_f4(model, path)
    else:
        path = tmp_path / "vq"
        model.save_pretrained(path)
    loaded = load_vq_f4(path)
    assert not loaded.training
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], values) for name, values in model.state_dict().items())
    # Weights at other addresses may take other kernels. Latents are given: rounded ones may have another nearest code.
    with torch.no_grad():
        assert relative_error(encode(loaded, DATA["images"]), encode(model, DATA["images"])) < 1e-5
        assert relative_error(decode(loaded, DATA["latents"]), decode(model, DATA["latents"])) < 1e-5


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    state = official_state()
    state["decoder.mid.block_3.conv1.weight"] = state.pop("decoder.mid.block_2.conv1.weight")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(RuntimeError) as error:
        load_vq_f4(tmp_path / "wrong.pth")
    assert "decoder.mid_block.resnets.1.conv1.weight" in str(error.value)  # missing
    assert "decoder.mid.block_3.conv1.weight" in str(error.value)  # unexpected


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_vq_f4(tmp_path / "nowhere.safetensors")
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        load_vq_f4(tmp_path / "notes.txt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not of a VQModelTorch"):
        load_vq_f4(tmp_path / "other.pth")


def test_sides_must_be_multiples_of_four(model: VQModel) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        encode(model, torch.zeros(1, 3, 30, 32))


def test_width_must_divide_into_groups() -> None:
    with pytest.raises(ValueError, match="48"):
        build_vq_f4(channels=48)


def test_released_size_converts_completely() -> None:
    """Names and shapes at the released size; its values are too large to ship."""
    shapes = json.loads((DATA_DIR / "official_shapes.json").read_text())["VQModelTorch"]
    with torch.device("meta"):
        model = build_vq_f4()
        converted = convert_ldm_state_dict({name: torch.empty(shape) for name, shape in shapes.items()})
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
