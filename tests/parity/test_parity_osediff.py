"""Variational score distillation against OSEDiff's own functions, for equal networks, timesteps and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.paths import EXPECTED
from trainables.diffusion.gaussian import Denoise, GaussianDiffusion, alphas_cumprod
from trainables.diffusion.one_step import distillation_loss, distillation_timesteps, score_loss

FILE: Path = EXPECTED / "osediff.npz"


def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(alphas_cumprod(1000, 0.00085, 0.012, "scaled_linear", False), "epsilon", 1000)


def network(signal: float, time: float) -> Denoise:
    """As when the numbers were made."""
    return lambda x, t: torch.tanh(signal * x + time * torch.sin(t.float() / 100).view(-1, 1, 1, 1))


def expected(name: str) -> Tensor:
    return torch.from_numpy(np.load(FILE)[name])


def test_distillation_and_its_gradient() -> None:
    x0 = expected("x0").requires_grad_(True)
    t, noise = expected("t"), expected("noise")
    loss = distillation_loss(diffusion(), network(0.9, 0.3), network(0.7, -0.2), x0, t, noise)
    (gradient,) = torch.autograd.grad(loss, x0)
    assert float(loss) == pytest.approx(float(expected("loss")), rel=1e-5)
    wanted = expected("gradient")
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_loss_of_the_second_lora() -> None:
    t, noise = expected("score_t"), expected("score_noise")
    loss = score_loss(diffusion(), network(0.7, -0.2), expected("x0"), t, noise)
    assert float(loss) == pytest.approx(float(expected("score")), rel=1e-5)


def test_timesteps_leave_out_both_ends() -> None:
    t = distillation_timesteps(diffusion(), torch.tensor([0.0, 0.5, 1 - 1e-7]))
    assert t.tolist() == [20, 500, 979]
