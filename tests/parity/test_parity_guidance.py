"""Distillation between two prompts against the functions of PiSA-SR and OSEDiff, for equal networks and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.paths import EXPECTED
from trainables.diffusion.gaussian import Denoise, GaussianDiffusion, alphas_cumprod
from trainables.diffusion.guidance import guided
from trainables.diffusion.one_step import (
    CLASSIFIER_LAST,
    classifier_distillation_loss,
    distillation_loss,
    distillation_timesteps,
)

# Origin of the file: expected/README.md. The networks are those with which it was made.
DATA = np.load(EXPECTED / "guidance.npz")
POSITIVE, NEGATIVE = 0.4, -0.25  # the means of the prompts


def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(alphas_cumprod(1000, 0.00085, 0.012, "scaled_linear", False), "epsilon", 1000)


def network(signal: float, time: float, prompt: float) -> Denoise:
    return lambda x, t: torch.tanh(signal * x + time * torch.sin(t.float() / 100).view(-1, 1, 1, 1) + prompt)


def expected(name: str) -> Tensor:
    return torch.from_numpy(DATA[name])


def agrees(loss: Tensor, x0: Tensor, name: str) -> None:
    """Loss and gradient, in float32."""
    (gradient,) = torch.autograd.grad(loss, x0)
    value, wanted = expected(name.format("")), expected(name.format("_gradient"))
    assert float(loss) == pytest.approx(float(value), rel=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_classifier_distillation_and_its_gradient(guidance: float) -> None:
    x0, prompts = expected("x0").requires_grad_(True), (network(0.9, 0.3, p) for p in (POSITIVE, NEGATIVE))
    t, noise = expected("classifier_t"), expected("noise")
    loss = classifier_distillation_loss(diffusion(), *prompts, guidance, x0, t, noise)
    agrees(loss, x0, f"classifier{{}}_{guidance:g}")


def test_variational_distillation_with_guidance() -> None:
    x0 = expected("x0").requires_grad_(True)
    base = guided(network(0.9, 0.3, POSITIVE), network(0.9, 0.3, NEGATIVE), 7.5)
    loss = distillation_loss(
        diffusion(), base, network(0.7, -0.2, POSITIVE), x0, expected("guided_t"), expected("noise")
    )
    agrees(loss, x0, "guided{}")


def test_timesteps_of_the_classifier_are_the_lower_half() -> None:
    t = distillation_timesteps(diffusion(), torch.tensor([0.0, 0.5, 1 - 1e-7]), CLASSIFIER_LAST)
    assert t.tolist() == [20, 260, 499]
