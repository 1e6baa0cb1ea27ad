"""Controllable Feature Wrapping and the colour corrections against StableSR's code."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers.models import AutoencoderKL

from tests.helpers.parity import drawn_weights, relative_error, uniform
from tests.helpers.paths import EXPECTED
from trainables.methods.shared.colour import match_colour
from trainables.networks.cfw import (
    ControllableFeatureWrapping,
    convert_official_cfw,
    decode_with_features,
    encode_with_features,
    load_official_cfw,
)

# Origin of the files: expected/README.md.
DATA_DIR = EXPECTED
EXPECTED = {name: torch.from_numpy(values) for name, values in np.load(DATA_DIR / "cfw.npz").items()}
SHAPES = json.loads((DATA_DIR / "cfw.json").read_text())
LATENTS_SHAPE, IMAGES_SHAPE = (1, 4, 2, 3), (1, 3, 16, 24)

Networks = tuple[AutoencoderKL, ControllableFeatureWrapping]

LIMITS = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Relative errors. The reference is computed in float64 and stored in float32. In float32 our outputs have up to 1.5e-6
with the kernels for SSE4.1 and AVX2."""
GRADIENT = {torch.float64: 1e-6, torch.float32: 2e-5}
"""In float32 up to 3e-6."""


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def networks(dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    path = tmp_path_factory.mktemp("cfw") / "vqgan_cfw_00011.ckpt"
    state = drawn_weights(30, SHAPES["tiny"]) | {"loss.logvar": torch.zeros(())}
    torch.save({"state_dict": state, "global_step": 16500}, path)
    vae, cfw = load_official_cfw(path)
    vae.requires_grad_(False)
    return vae.to(dtype), cfw.to(dtype)


@torch.no_grad()
def test_encode(networks: Networks, dtype: torch.dtype) -> None:
    mean, features = encode_with_features(networks[0], uniform(31, *IMAGES_SHAPE).to(dtype))
    assert relative_error(mean, EXPECTED["mean"]) < LIMITS[dtype]
    for level, feature in enumerate(features, start=1):
        assert relative_error(feature[:, ::4], EXPECTED[f"feature/{level}"]) < LIMITS[dtype]
    assert len(features) == 2


@torch.no_grad()
def test_fusion_module(networks: Networks, dtype: torch.dtype) -> None:
    vae, cfw = networks
    _, features = encode_with_features(vae, uniform(31, *IMAGES_SHAPE).to(dtype))
    for level, feature in enumerate(features, start=1):
        fused = cfw(level, feature, uniform(40 + level, *feature.shape).to(dtype), 0.5)
        assert relative_error(fused[:, ::4], EXPECTED[f"fused/{level}"]) < LIMITS[dtype]


@pytest.mark.parametrize("strength", [0, 0.5, 1])
@torch.no_grad()
def test_decode(networks: Networks, dtype: torch.dtype, strength: float) -> None:
    vae, cfw = networks
    _, features = encode_with_features(vae, uniform(31, *IMAGES_SHAPE).to(dtype))
    decoded = decode_with_features(vae, cfw, 3 * uniform(32, *LATENTS_SHAPE).to(dtype), features, strength)
    assert relative_error(decoded, EXPECTED[f"decoded/{strength}"]) < LIMITS[dtype]


def test_gradients(networks: Networks, dtype: torch.dtype) -> None:
    """Of the decoded images' mean square with respect to every parameter, at about 24 evenly spaced elements each."""
    vae, cfw = networks
    _, features = encode_with_features(vae, uniform(31, *IMAGES_SHAPE).to(dtype))
    decoded = decode_with_features(vae, cfw, 3 * uniform(32, *LATENTS_SHAPE).to(dtype), features, 0.5)
    decoded.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in cfw.named_parameters()}
    cfw.zero_grad()
    sampled = []
    for name in convert_official_cfw(drawn_weights(30, SHAPES["tiny"]))[1]:  # in the order of the official names
        gradient = gradients.pop(name)
        assert gradient is not None
        sampled.append(gradient.flatten()[:: max(1, gradient.numel() // 24)])
    assert not gradients
    expected = EXPECTED["grads"].split([len(values) for values in sampled])
    assert max(map(relative_error, sampled, expected)) < GRADIENT[dtype]


@pytest.mark.parametrize("kind", ["adain", "wavelet"])
def test_colour(kind: Literal["adain", "wavelet"]) -> None:
    restored, reference = uniform(50, 2, 3, 12, 20), uniform(51, 2, 3, 12, 20) * 0.5 + 0.2
    assert relative_error(match_colour(restored, reference, kind), EXPECTED[f"colour/{kind}"]) < 1e-5


def test_released_size_converts_completely() -> None:
    """Names and shapes at the released size; its values are too large to ship."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        cfw = ControllableFeatureWrapping(vae.config.block_out_channels, vae.config.norm_num_groups)
        state = {name: torch.empty(shape) for name, shape in SHAPES["released"].items()}
    for network, converted in zip((vae, cfw), convert_official_cfw(state), strict=True):
        assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in network.state_dict().items()}
