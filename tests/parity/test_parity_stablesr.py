"""The time-aware encoder, the transforms of the UNet's features, sampling and sharpening against StableSR's code."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.helpers.bases import tiny_unet
from tests.helpers.curves import normal
from tests.helpers.parity import drawn_weights, relative_error, uniform
from tests.helpers.paths import EXPECTED
from trainables.diffusion.gaussian import GaussianDiffusion, alphas_cumprod
from trainables.images.degradations.sharpening import sharpened
from trainables.networks.checkpoint_files import load_strictly
from trainables.networks.time_aware import (
    ModulatedUNet,
    TimeAwareConditioning,
    convert_official_stablesr,
    read_official_stablesr,
)

# Origin of the files: expected/README.md.
DATA = {name: torch.from_numpy(values) for name, values in np.load(EXPECTED / "stablesr.npz").items()}
RECIPE = dict(np.load(EXPECTED / "stablesr_recipe.npz"))
SHAPES = json.loads((EXPECTED / "stablesr.json").read_text())

LIMITS = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Relative errors. The reference is computed in float64 and stored in float32."""
GRADIENT = {torch.float64: 1e-6, torch.float32: 2e-5}


@dataclass
class Case:
    """Our networks with the official weights, and the inputs of the reference."""

    dtype: torch.dtype
    unet: ModulatedUNet
    conditioning: TimeAwareConditioning

    def __post_init__(self) -> None:
        shape = (2, 4, 8, 12)
        self.y, self.prompt = uniform(61, *shape).to(self.dtype), uniform(64, 1, 3, 16).to(self.dtype)
        self.x0, self.noise = 2 * uniform(62, *shape).to(self.dtype), 1.7 * uniform(63, *shape).to(self.dtype)
        self.t = torch.tensor([37, 812])


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("stablesr") / "stablesr_000117.ckpt"
    others = {"first_stage_model.encoder.conv_in.bias": torch.zeros(1), "betas": torch.zeros(1000)}
    torch.save({"state_dict": drawn_weights(60, SHAPES["tiny"]) | others, "global_step": 16500}, path)
    unet = tiny_unet(
        block_out_channels=(32, 64), attention_head_dim=(2, 4), cross_attention_dim=16, norm_num_groups=32,
        use_linear_projection=True,
    )  # fmt: skip
    conditioning = TimeAwareConditioning(unet, 32, 1, 128, normalised=True)
    base, trained = convert_official_stablesr(read_official_stablesr(path), unet)
    load_strictly(unet, base)
    load_strictly(conditioning, trained)
    unet.requires_grad_(False).to(request.param)
    conditioning.to(request.param)
    return Case(request.param, ModulatedUNet(unet, conditioning.transforms), conditioning)


@torch.no_grad()
def test_encoder(case: Case) -> None:
    features = case.conditioning(case.y, case.t)
    assert len(features) == 2
    for level, feature in enumerate(features):
        assert relative_error(feature[:, ::4], DATA[f"features/{level}"]) < LIMITS[case.dtype]


def test_loss_and_gradients(case: Case) -> None:
    """Of the official objective with respect to every trained parameter, at about 12 evenly spaced elements each."""
    diffusion = GaussianDiffusion(alphas_cumprod(1000, 0.00085, 0.012, "scaled_linear", False), "epsilon", 1000)
    x_t = diffusion.add_noise(case.x0, case.t, case.noise)
    output = case.unet(x_t, case.t, case.prompt, case.conditioning(case.y, case.t))
    assert relative_error(output, DATA["output"]) < LIMITS[case.dtype]
    loss = (output - case.noise).square().mean()
    assert relative_error(loss, DATA["loss"]) < LIMITS[case.dtype]
    loss.backward()
    # The conversion only moves elements. Numbering them shows where it moves each.
    sizes = {name: math.prod(shape) for name, shape in SHAPES["tiny"].items()}
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    numbered = {name: torch.arange(size).view(SHAPES["tiny"][name]) + starts[name] for name, size in sizes.items()}
    _, numbers = convert_official_stablesr(numbered, case.unet.unet)
    gradients = torch.full((sum(sizes.values()),), torch.nan, dtype=case.dtype)
    for name, parameter in case.conditioning.named_parameters():
        assert parameter.grad is not None
        gradients[numbers[name].flatten()] = parameter.grad.flatten()
    trained = [name for name in sorted(sizes) if ".spade." in name or name.startswith("structcond_stage_model.")]
    sampled = [gradients[numbered[name].flatten()[:: max(1, sizes[name] // 12)]] for name in trained]
    expected = DATA["grads"].split([len(values) for values in sampled])
    for name, found, wanted in zip(trained, sampled, expected, strict=True):
        if wanted.abs().max() < 1e-12:  # exactly 0, such as of a bias before a normalisation
            assert found.abs().max() < 1e-7, name
        else:
            assert relative_error(found, wanted) < GRADIENT[case.dtype], name


def test_released_size_converts_completely() -> None:
    """Names and shapes of what is trained, at the released size, on Stable Diffusion 2.1's UNet."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        )
        conditioning = TimeAwareConditioning(unet, 256, 2, 128, normalised=True)
        state = {name: torch.empty(shape) for name, shape in SHAPES["released"].items()}
    _, converted = convert_official_stablesr(state, unet)
    expected = {name: value.shape for name, value in conditioning.state_dict().items()}
    assert {name: value.shape for name, value in converted.items()} == expected


def test_ancestral_sampling() -> None:
    """20 steps, with a toy denoiser and equal noise."""
    diffusion = GaussianDiffusion(alphas_cumprod(1000, 0.00085, 0.012, "scaled_linear", False), "epsilon", 1000)
    shape = (2, 4, 6, 6)
    y, noise = (normal(name, 0, *shape) for name in ("y", "x_T"))
    drawn = (normal("step_noise", step, *shape) for step in itertools.count())

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.7 * x.roll(1, -1) + y + 0.3 * torch.sin(t.float() / 100).view(-1, 1, 1, 1)) + 0.5 * x

    x0 = diffusion.sample_ancestral(denoise, y, noise, 20, "linspace", lambda timestep: next(drawn))
    assert relative_error(x0, torch.from_numpy(RECIPE["ancestral"])) < 1e-5


def test_sharpened_targets() -> None:
    """`USMSharp`, whose result is not rounded to 8 bits."""
    found, expected = sharpened(RECIPE["image"]), RECIPE["sharpened"]
    assert np.abs(found[::3, ::3] - expected).max() < 0.501
