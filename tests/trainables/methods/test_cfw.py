"""Controllable Feature Wrapping around an autoencoder of any size, the fidelity blend and the colour corrections."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import AutoencoderKL

from tests.helpers.paths import EXPECTED
from trainables.methods.shared.colour import match_colour
from trainables.networks.cfw import (
    ControllableFeatureWrapping,
    DenseBlock,
    convert_official_cfw,
    decode_with_features,
    encode_with_features,
    fidelity_blend,
    load_official_cfw,
)


def build(widths: tuple[int, ...], **options: Any) -> tuple[AutoencoderKL, ControllableFeatureWrapping]:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=4,
        **options,
    ).requires_grad_(False)
    return vae, ControllableFeatureWrapping(widths, norm_groups=4, dense_blocks=1, growth=4)


# The second autoencoder differs from Stable Diffusion's.
@pytest.fixture(
    scope="module",
    params=[((8, 16, 12), {}), ((8, 4, 16, 12, 8), {"use_quant_conv": False, "use_post_quant_conv": False})],
    ids=["three levels", "five levels"],
)
def networks(request: pytest.FixtureRequest) -> tuple[AutoencoderKL, ControllableFeatureWrapping]:
    widths, options = request.param
    return build(widths, **options)


@torch.no_grad()
def test_encodes_like_the_autoencoder(networks: tuple[AutoencoderKL, ControllableFeatureWrapping]) -> None:
    vae, _ = networks
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    mean, features = encode_with_features(vae, images)
    assert torch.equal(mean, vae.encode(images).latent_dist.mean)
    widths = vae.config.block_out_channels
    expected = [(2, width, 32 >> i, 48 >> i) for i, width in enumerate(widths)][1:-1]
    assert [tuple(feature.shape) for feature in features] == expected


@torch.no_grad()
def test_strength_zero_equals_the_autoencoder(networks: tuple[AutoencoderKL, ControllableFeatureWrapping]) -> None:
    vae, cfw = networks
    mean, features = encode_with_features(vae, torch.rand(2, 3, 32, 48) * 2 - 1)
    latents = torch.randn_like(mean)
    decoded = vae.decode(latents).sample
    assert torch.equal(decode_with_features(vae, cfw, latents, features, 0.0), decoded)
    unusable = [torch.full_like(feature, float("nan")) for feature in features]
    assert torch.equal(decode_with_features(vae, cfw, latents, unusable, 0.0), decoded)


def test_gradients_reach_only_the_fusion() -> None:
    vae, cfw = build((8, 16, 12, 8))
    mean, features = encode_with_features(vae, torch.rand(1, 3, 32, 32) * 2 - 1)
    decode_with_features(vae, cfw, mean, features, 1.0).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in cfw.parameters())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_training_restores_details_missing_in_latents() -> None:
    """The purpose of fusion: here the latents contain nothing of the image, the features do."""
    vae, cfw = build((8, 16, 12))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, features = encode_with_features(vae, images)
    latents = torch.zeros_like(mean)
    optimiser = torch.optim.Adam(cfw.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = (decode_with_features(vae, cfw, latents, features, 1.0) - images).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    plain = (decode_with_features(vae, cfw, latents, features, 0.0) - images).abs().mean()
    assert losses[-1] < 0.9 * min(losses[0], plain.item())


def test_dense_blocks_start_close_to_the_identity() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 16, 8, 8)
    change = DenseBlock(16, 8)(features) - features
    assert 0 < change.std() < 0.05


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_and_weight_must_be_in_unit_interval(strength: float) -> None:
    vae, cfw = build((8, 16, 12))
    mean, features = encode_with_features(vae, torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=rf"strength={strength} .* \[0, 1\]"):
        decode_with_features(vae, cfw, mean, features, strength)
    with pytest.raises(ValueError, match=rf"weight={strength} .* \[0, 1\]"):
        fidelity_blend(mean, mean, strength)


def test_other_sizes_are_refused() -> None:
    vae, _ = build((8, 16, 12))
    with pytest.raises(ValueError, match="multiples of 4"):
        encode_with_features(vae, torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match="3 levels"):
        ControllableFeatureWrapping((8, 16))


def test_fidelity_blend() -> None:
    restored, reconstruction = torch.rand(2, 2, 3, 4, 4)
    assert torch.equal(fidelity_blend(restored, reconstruction, 0), restored)
    assert torch.equal(fidelity_blend(restored, reconstruction, 1), reconstruction)
    quarter = fidelity_blend(restored, reconstruction, 0.25)
    torch.testing.assert_close(quarter, 0.75 * restored + 0.25 * reconstruction)


def test_adain_matches_statistics_of_the_reference() -> None:
    restored, reference = (
        torch.randn(2, 3, 16, 16),
        torch.randn(2, 3, 16, 16) * torch.tensor([0.2, 2.0])[:, None, None, None] + 0.3,
    )
    matched = match_colour(restored, reference, "adain")
    torch.testing.assert_close(matched.mean(dim=(2, 3)), reference.mean(dim=(2, 3)))
    torch.testing.assert_close(matched.std(dim=(2, 3)), reference.std(dim=(2, 3)), rtol=1e-3, atol=0)


def test_wavelet_removes_colour_cast_and_keeps_details() -> None:
    reference = torch.rand(1, 3, 40, 48)
    cast = torch.tensor([0.2, -0.1, 0.05])[:, None, None]
    torch.testing.assert_close(match_colour(reference + cast, reference, "wavelet"), reference)
    checkerboard = 0.1 * (torch.arange(40)[:, None] + torch.arange(48)).remainder(2).mul(2).sub(1)
    detailed = match_colour(reference + checkerboard, reference, "wavelet")
    # Not exactly: at the borders, where pixels repeat, the blurs include some of it.
    torch.testing.assert_close(detailed, reference + checkerboard, rtol=0, atol=0.005)


def test_match_colour_refuses_unknown_kind_and_other_shapes() -> None:
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="adain or wavelet"):
        match_colour(images, images, "histogram")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="equal shapes"):
        match_colour(images, images[..., :4], "adain")


def official_shapes() -> dict[str, list[int]]:
    return json.loads((EXPECTED / "cfw.json").read_text())["tiny"]


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape) for name, shape in official_shapes().items()}
    conv = "decoder.fusion_layer_2.encode_enc_2.0.rdb1.conv"
    state[conv + "6.bias"] = state.pop(conv + "5.bias")
    torch.save({"state_dict": state}, tmp_path / "wrong.ckpt")
    with pytest.raises(RuntimeError) as error:
        load_official_cfw(tmp_path / "wrong.ckpt")
    assert "levels.1.dense.0.0.convs.4.bias" in str(error.value)  # missing
    assert "levels.1.dense.0.0.convs.5.bias" in str(error.value)  # unexpected


def test_weights_without_fusion_are_refused() -> None:
    state = {name: torch.empty(0) for name in official_shapes() if "fusion_layer" not in name}
    with pytest.raises(ValueError, match="fusion_layer"):
        convert_official_cfw(state)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def test_lightning_checkpoint_is_read_without_executing_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for package in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    callback = type("ModelCheckpoint", (), {"__module__": name})
    vars(sys.modules[name])["ModelCheckpoint"] = callback
    torch.save({"state_dict": {}, "callbacks": {callback: {"monitor": "val/rec_loss"}}}, tmp_path / "lightning.ckpt")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no weights in it"):  # it was read
        load_official_cfw(tmp_path / "lightning.ckpt")
    torch.save({"state_dict": {}, "callbacks": Payload()}, tmp_path / "payload.ckpt")
    with pytest.raises(ValueError, match="no weights in it"):  # and nothing was executed
        load_official_cfw(tmp_path / "payload.ckpt")
