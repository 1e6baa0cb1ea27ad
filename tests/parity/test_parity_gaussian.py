"""Schedules, predictions and DDIM sampling against diffusers' schedulers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from tests.helpers.parity import relative_error
from trainables.diffusion.gaussian import (
    BetaSchedule,
    Denoise,
    GaussianDiffusion,
    PredictionType,
    TimestepSpacing,
    alphas_cumprod,
)

SHAPE = (4, 3, 5, 6)
STABLE_DIFFUSION: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


X0, Y, NOISE, OUTPUT = (normal(seed) for seed in range(4))


def denoiser(diffusion: GaussianDiffusion) -> Denoise:
    """Replaces a network: a bounded v, converted to the prediction type of `diffusion`."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        v = torch.tanh(0.7 * x_t.roll(1, -1) + Y + 0.3 * torch.sin(t / 100).view(-1, 1, 1, 1))
        abar = diffusion.alphas_cumprod[t].float().view(-1, 1, 1, 1)
        if diffusion.prediction_type == "epsilon":
            return abar.sqrt() * v + (1 - abar).sqrt() * x_t
        if diffusion.prediction_type == "sample":
            return abar.sqrt() * x_t - (1 - abar).sqrt() * v
        return v

    return denoise


def ours(prediction_type: PredictionType, zero_terminal_snr: bool) -> GaussianDiffusion:
    abar = alphas_cumprod(1000, **STABLE_DIFFUSION, zero_terminal_snr=zero_terminal_snr)
    return GaussianDiffusion(abar, prediction_type, max_timestep=1000)


def theirs(prediction_type: PredictionType, zero_terminal_snr: bool, **settings: Any) -> DDIMScheduler:
    settings = STABLE_DIFFUSION | {"clip_sample": False, "rescale_betas_zero_snr": zero_terminal_snr} | settings
    return DDIMScheduler(1000, prediction_type=prediction_type, **settings)


# For epsilon with zero terminal SNR, diffusers divides by zero.
PREDICTIONS = pytest.mark.parametrize(
    ("prediction_type", "zero_terminal_snr"),
    [(kind, zero) for kind in get_args(PredictionType) for zero in (False, True) if not (zero and kind == "epsilon")],
)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", get_args(BetaSchedule))
@pytest.mark.parametrize(("beta_start", "beta_end", "steps"), [(0.00085, 0.012, 1000), (0.0001, 0.02, 50)])
def test_alphas_cumprod(
    beta_schedule: BetaSchedule, beta_start: float, beta_end: float, steps: int, zero_terminal_snr: bool
) -> None:
    abar = alphas_cumprod(steps, beta_start, beta_end, beta_schedule, zero_terminal_snr)
    for scheduler in (DDIMScheduler, DDPMScheduler):
        expected = scheduler(
            steps, beta_start, beta_end, beta_schedule, rescale_betas_zero_snr=zero_terminal_snr
        ).alphas_cumprod
        assert abar.dtype == expected.dtype and relative_error(abar, expected) < 1e-5
        assert (abar[-1] == 0) == (expected[-1] == 0) == zero_terminal_snr


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_forward_chain_and_velocity(zero_terminal_snr: bool) -> None:
    diffusion, scheduler = ours("v_prediction", zero_terminal_snr), theirs("v_prediction", zero_terminal_snr)
    t = torch.tensor([0, 17, 500, 999])
    assert relative_error(diffusion.add_noise(X0, t, NOISE), scheduler.add_noise(X0, NOISE, t)) < 1e-5
    assert relative_error(diffusion.target(X0, NOISE, t), scheduler.get_velocity(X0, NOISE, t)) < 1e-5


@PREDICTIONS
@pytest.mark.parametrize("t", [0, 17, 500, 999])
def test_predicted_x0(prediction_type: PredictionType, zero_terminal_snr: bool, t: int) -> None:
    x0 = ours(prediction_type, zero_terminal_snr).predict_x0(OUTPUT, NOISE, torch.full((4,), t))
    ddim = theirs(prediction_type, zero_terminal_snr)
    ddim.set_timesteps(1000)
    assert relative_error(x0, ddim.step(OUTPUT, t, NOISE).pred_original_sample) < 1e-5
    ddpm = DDPMScheduler.from_config(ddim.config)
    assert relative_error(x0, ddpm.step(OUTPUT, t, NOISE).pred_original_sample) < 1e-5


@pytest.mark.parametrize("spacing", get_args(TimestepSpacing))
@pytest.mark.parametrize("max_timestep", [1000, 667, 50])
def test_timesteps(spacing: TimestepSpacing, max_timestep: int) -> None:
    """A shortened chain has the timesteps of a schedule of that length."""
    abar = alphas_cumprod(1000, **STABLE_DIFFUSION, zero_terminal_snr=False)
    diffusion = GaussianDiffusion(abar, "epsilon", max_timestep)
    scheduler = DDIMScheduler(max_timestep, timestep_spacing=spacing)
    for steps in range(1, max_timestep + 1):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.tolist()
        if len(expected) > steps:  # for some counts, diffusers' `trailing` is one too long
            assert spacing == "trailing" and expected.pop() == -1
        assert diffusion.timesteps(steps, spacing) == expected


def test_timesteps_of_stable_diffusion() -> None:
    scheduler = theirs("epsilon", False, steps_offset=1)
    for steps in (1, 7, 50, 999):
        scheduler.set_timesteps(steps)
        assert ours("epsilon", False).timesteps(steps, "leading", steps_offset=1) == scheduler.timesteps.tolist()


@PREDICTIONS
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize(
    ("spacing", "steps", "steps_offset"),
    [("leading", 10, 0), ("leading", 7, 1), ("trailing", 1, 0), ("trailing", 10, 0), ("linspace", 10, 0)],
)
def test_ddim(
    prediction_type: PredictionType,
    zero_terminal_snr: bool,
    spacing: TimestepSpacing,
    steps: int,
    steps_offset: int,
    set_alpha_to_one: bool,
) -> None:
    scheduler = theirs(
        prediction_type,
        zero_terminal_snr,
        timestep_spacing=spacing,
        steps_offset=steps_offset,
        set_alpha_to_one=set_alpha_to_one,
    )
    scheduler.set_timesteps(steps)
    if spacing == "linspace":
        # diffusers steps back by 1000 // num_inference_steps, but these timesteps are 999 / 9 = 1000 // 9 apart.
        scheduler.num_inference_steps = 9
    diffusion = ours(prediction_type, zero_terminal_snr)
    denoise = denoiser(diffusion)
    expected, states = NOISE, []
    for t in scheduler.timesteps:
        states.append(expected)
        expected = scheduler.step(denoise(expected, t.expand(4)), int(t), expected).prev_sample

    visited = []

    def recording(x_t: Tensor, t: Tensor) -> Tensor:
        visited.append(x_t)
        return denoise(x_t, t)

    sample = diffusion.sample_ddim(recording, Y, NOISE, steps, spacing, steps_offset, set_alpha_to_one)
    assert relative_error(sample, expected) < 1e-5
    for actual, state in zip(visited, states, strict=True):
        assert relative_error(actual, state) < 1e-5
