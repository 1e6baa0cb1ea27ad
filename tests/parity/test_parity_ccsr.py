"""CCSR's truncated sampling and the losses of its first stage against the official code, with a toy denoiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.parity import relative_error
from tests.helpers.paths import EXPECTED
from trainables.diffusion.ccsr import JUMP_TERMS, ccsr_jump_terms, sample_truncated
from trainables.diffusion.gaussian import GaussianDiffusion, alphas_cumprod

# Origin of the file: expected/README.md.
with np.load(EXPECTED / "ccsr.npz") as file:
    DATA = {key: torch.from_numpy(file[key]) for key in file.files}
X0, Y, X_T, STEP_NOISE = (DATA[key] for key in ("x0", "y", "x_T", "step_noise"))
T_MAX, T_MIN = 0.6667, 0.3333


class ToyDenoiser(nn.Module):
    """Two convolutions of state and conditioning `Y`; every weight from a seed and its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.parameters():
                fan_in = max(weight[0].numel(), 4)
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
        self.seen: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.seen.append(int(t[0]))
        time = torch.sin(t[:, None] / 1000 * torch.arange(1, 9))
        hidden = F.silu(self.conv1(torch.cat([x_t, Y], dim=1)) + time[:, :, None, None])
        return x_t + 0.5 * self.conv2(hidden)


@pytest.fixture
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(alphas_cumprod(1000, 0.00085, 0.012, "scaled_linear", False), "epsilon", 1000)


@pytest.fixture
def network() -> ToyDenoiser:
    return ToyDenoiser()


@pytest.mark.parametrize(("key", "steps", "t_max", "t_min"), [("official", 45, T_MAX, T_MIN), ("short", 9, 0.8, 0.2)])
def test_truncated_sampling(
    diffusion: GaussianDiffusion, network: ToyDenoiser, key: str, steps: int, t_max: float, t_min: float
) -> None:
    recorded = iter(STEP_NOISE)
    x0 = sample_truncated(diffusion, network, Y, X_T, steps, t_max, t_min, lambda t: next(recorded))
    assert network.seen == DATA[f"{key}/timesteps"].tolist()
    assert relative_error(x0, DATA[f"{key}/x0"]) < 1e-5


def test_sampling_for_decoder_training(diffusion: GaussianDiffusion, network: ToyDenoiser) -> None:
    """The official training starts from the noised ground truth, and adds the same noise again at the jump."""
    end_noise = DATA["decoder/end_noise"]
    x_T = diffusion.add_noise(X0, torch.full((2,), 999), end_noise)
    recorded = iter([end_noise, *STEP_NOISE])
    x0 = sample_truncated(diffusion, network, Y, x_T, 45, T_MAX, T_MIN, lambda t: next(recorded))
    assert relative_error(x0, DATA["decoder/x0"]) < 1e-5


def test_denoising_loss(diffusion: GaussianDiffusion, network: ToyDenoiser) -> None:
    loss = diffusion.training_loss(network, X0, DATA["t"], STEP_NOISE[0]).mean()
    assert relative_error(loss.detach(), DATA["simple"]) < 1e-5
    loss.backward()
    assert network.conv1.weight.grad is not None
    assert relative_error(network.conv1.weight.grad, DATA["simple/grad"]) < 1e-5


def test_jump_terms(diffusion: GaussianDiffusion, network: ToyDenoiser) -> None:
    terms = ccsr_jump_terms(diffusion, network, X0, STEP_NOISE[1], STEP_NOISE[2], T_MAX)
    assert network.seen == [999, 667]
    for term in JUMP_TERMS:
        assert relative_error(terms[term].mean().detach(), DATA[f"jump/{term}"]) < 1e-5
    torch.stack(list(terms.values())).sum(dim=0).mean().backward()
    assert network.conv1.weight.grad is not None
    assert relative_error(network.conv1.weight.grad, DATA["jump/grad"]) < 1e-5
