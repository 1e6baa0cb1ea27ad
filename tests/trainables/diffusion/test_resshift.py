"""Properties of the residual-shifting chain and of SinSR's terms that hold for any network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables.common.errors import InputError
from trainables.diffusion.resshift import ResShiftDiffusion
from trainables.diffusion.sinsr import TERMS, sinsr_terms
from trainables.pretrained.resshift import build_diffusion
from trainables.settings import ResShiftSettings

SHAPE = (3, 2, 4, 6)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def diffusion() -> ResShiftDiffusion:
    return ResShiftDiffusion()


class TinyNetwork(nn.Module):
    """A convolution of state and conditioning, and an embedding of the timestep; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(4, 2, 3, padding=1)
            self.embedding = nn.Embedding(15, 2)
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.tanh(self.conv(torch.cat([x, lq], dim=1))) + self.embedding(t)[:, :, None, None]


@pytest.mark.parametrize("settings", [{}, {"steps": 2}, {"steps": 1000, "power": 2.0}, {"kappa": 0.5}])
def test_etas_grow_from_the_noise_floor_to_the_end(settings: dict[str, float]) -> None:
    diffusion = ResShiftDiffusion(**settings)  # type: ignore[arg-type]
    etas = diffusion.etas
    assert etas.dtype == np.float64
    assert (np.diff(etas) > 0).all()
    assert np.sqrt(etas[-1]) == pytest.approx(0.99, rel=1e-12)
    assert diffusion.kappa * np.sqrt(etas[0]) <= 0.04 * (1 + 1e-12)


def test_start_without_its_bound() -> None:
    """The journal version of ResShift: 0.2 / kappa in place of the square root of 0.001."""
    starts = [ResShiftDiffusion(4, min_noise_level=0.2, bounded=bounded).etas[0] ** 0.5 for bounded in (True, False)]
    assert starts == pytest.approx([0.001**0.5, 0.1])
    settings = ResShiftSettings(min_noise_level=0.66, kappa=2.0, bounded=False)
    assert build_diffusion(settings).etas[0] == pytest.approx(0.33**2)
    for kappa, least, most in ((2.0, 0.7, "0.66"), (1.0, 0.66, "0.33")):
        message = rf"^resshift.min_noise_level={least}: expected at most {most} with resshift.kappa={kappa:g}, "
        with pytest.raises(InputError, match=message):
            ResShiftSettings(min_noise_level=least, kappa=kappa, bounded=False)


def test_forward_chain_has_the_stated_mean_and_variance(diffusion: ResShiftDiffusion) -> None:
    x0, y, noise = (normal(seed, 4, 1, 256, 256) for seed in range(3))
    t = torch.tensor([0, 5, 10, 14])
    eta = torch.from_numpy(diffusion.etas).float()[t].view(-1, 1, 1, 1)
    residual = diffusion.q_sample(x0, y, t, noise) - (x0 + eta * (y - x0))
    torch.testing.assert_close(residual.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=0.03)
    torch.testing.assert_close(residual.var((1, 2, 3)), 4 * eta.flatten(), rtol=0.02, atol=0)


def test_posterior_steps_compose_to_the_marginal(diffusion: ResShiftDiffusion) -> None:
    """x_{t-1} drawn from the posterior of an x_t from q(x_t | x0) is distributed as q(x_{t-1} | x0)."""
    x0, y = normal(0, 1, 1, 512, 512), normal(1, 1, 1, 512, 512)
    t = torch.tensor([9])
    x_t = diffusion.q_sample(x0, y, t, normal(2, 1, 1, 512, 512))
    drawn = diffusion.ancestral_step(x0, x_t, t, normal(3, 1, 1, 512, 512))
    eta = float(diffusion.etas[8])
    residual = drawn - (x0 + eta * (y - x0))
    assert float(residual.mean()) == pytest.approx(0, abs=0.01)
    assert float(residual.var()) == pytest.approx(4 * eta, rel=0.02)


def test_deterministic_step_keeps_the_noise(diffusion: ResShiftDiffusion) -> None:
    x0, y, noise = (normal(seed).double() for seed in range(3))
    t = torch.tensor([1, 7, 14])
    x_t = diffusion.q_sample(x0, y, t, noise)
    torch.testing.assert_close(diffusion.ddim_step(x0, x_t, y, t), diffusion.q_sample(x0, y, t - 1, noise))


def test_last_step_returns_x0(diffusion: ResShiftDiffusion) -> None:
    x0, x_t, y, noise = (normal(seed) for seed in range(4))
    t = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(diffusion.ddim_step(x0, x_t, y, t), x0)
    assert torch.equal(diffusion.ancestral_step(x0, x_t, t, noise), x0)


def test_prior_equals_the_chains_end_for_x0_equal_to_y(diffusion: ResShiftDiffusion) -> None:
    y, noise = normal(0), normal(1)
    t = torch.full((3,), diffusion.last)
    torch.testing.assert_close(diffusion.prior_sample(y, noise), diffusion.q_sample(y, y, t, noise))


def test_oracle_is_sampled_exactly(diffusion: ResShiftDiffusion) -> None:
    x0, y, noise = (normal(seed) for seed in range(3))
    seen = []

    def oracle(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return x0

    assert torch.equal(diffusion.sample_ddim(oracle, y, noise), x0)
    assert seen == [[t] * 3 for t in reversed(range(15))]
    assert torch.equal(diffusion.sample_ancestral(oracle, y, noise, torch.Generator()), x0)
    assert torch.equal(diffusion.predict_from_prior(oracle, y, noise), x0)
    assert torch.equal(diffusion.training_loss(oracle, x0, y, torch.tensor([0, 7, 14]), noise), torch.zeros(3))


def test_ancestral_noise_depends_on_the_generator_only(diffusion: ResShiftDiffusion) -> None:
    y, noise = normal(0), normal(1)

    def sample(seed: int) -> Tensor:
        torch.randn(1)  # advances the global generator
        generator = torch.Generator().manual_seed(seed)
        return diffusion.sample_ancestral(lambda x, t: 0.5 * x, y, noise, generator)

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    recorded = torch.Generator().manual_seed(3)
    by_callable = diffusion.sample_ancestral(
        lambda x, t: 0.5 * x, y, noise, lambda t: torch.randn(y.shape, generator=recorded)
    )
    assert torch.equal(by_callable, sample(3))


def test_respaced_chain_passes_original_timesteps(diffusion: ResShiftDiffusion) -> None:
    respaced = diffusion.respace(4)
    seen: list[int] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(int(t[0]))
        return x

    respaced.sample_ddim(network, normal(0), normal(1))
    assert seen == [11, 7, 3, 0]
    np.testing.assert_array_equal(respaced.etas, diffusion.etas[[0, 3, 7, 11]])
    assert diffusion.steps == 15


def test_tables_are_made_once_per_device_and_can_be_copied(diffusion: ResShiftDiffusion) -> None:
    t = torch.tensor([0, 7, 14])
    first = diffusion.scale_input(normal(0), t)
    table = diffusion._on_device[(torch.device("cpu"), torch.float32)]
    diffusion.scale_input(normal(0), t)
    assert diffusion._on_device[(torch.device("cpu"), torch.float32)] is table
    assert torch.equal(copy.deepcopy(diffusion).scale_input(normal(0), t), first)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 1}, "steps is 1"),
        ({"power": 0.0}, r"power is 0\.0"),
        ({"kappa": -1.0}, r"kappa is -1\.0"),
        ({"kappa": float("nan")}, "kappa is nan"),
        ({"min_noise_level": 0.0}, r"min_noise_level is 0\.0"),
        ({"etas_end": 1.0}, r"etas_end is 1\.0"),
        ({"etas_end": 0.01}, r"etas_end is 0\.01"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ResShiftDiffusion(**settings)  # type: ignore[arg-type]


def test_invalid_arguments_are_refused(diffusion: ResShiftDiffusion) -> None:
    x, t = normal(0), torch.tensor([0, 7, 14])
    with pytest.raises(ValueError, match=r"t has values in \[0, 15\]"):
        diffusion.scale_input(x, torch.tensor([0, 7, 15]))
    with pytest.raises(ValueError, match=r"t has values in \[-1, 14\]"):
        diffusion.scale_input(x, torch.tensor([-1, 7, 14]))
    with pytest.raises(ValueError, match="int64"):
        diffusion.scale_input(x, t.float())
    with pytest.raises(ValueError, match=r"it must be int64 \(3,\)"):
        diffusion.q_sample(x, x, t[:2], x)
    with pytest.raises(ValueError, match=r"y is \(1, 2, 4, 6\)"):
        diffusion.q_sample(x, x[:1], t, x)
    with pytest.raises(ValueError, match=r"2\.\.15"):
        diffusion.respace(16)


def sinsr_inputs(diffusion: ResShiftDiffusion) -> dict[str, Tensor]:
    lq, x0_gt, y, noise, x0_teacher = (normal(seed) for seed in range(5))
    x_T = diffusion.prior_sample(y, noise)
    return {"lq": lq, "x0_gt": x0_gt, "x_T": x_T, "x0_teacher": x0_teacher}


def test_fused_terms_and_gradients_equal_separate_ones(diffusion: ResShiftDiffusion) -> None:
    inputs = sinsr_inputs(diffusion)
    results = []
    for fused in (True, False):
        network = TinyNetwork()
        terms = sinsr_terms(network, diffusion, **inputs, fused=fused)
        assert list(terms) == list(TERMS)
        weighted = [weight * terms[term] for weight, term in zip((1.0, 0.5, 2.0), TERMS, strict=True)]
        torch.cat(weighted).mean().backward()
        results.append((terms, [p.grad for p in network.parameters()], network.batches))
    (fused_terms, fused_grads, fused_batches), (terms, grads, batches) = results
    torch.testing.assert_close(fused_terms, terms)
    torch.testing.assert_close(fused_grads, grads)
    assert fused_batches == [3, 9] and batches == [3, 3, 3, 3]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("subset", [("distillation",), ("ground_truth", "inversion"), ("ground_truth",)])
def test_omitted_terms_are_not_computed(diffusion: ResShiftDiffusion, subset: tuple[str, ...], fused: bool) -> None:
    network, inputs = TinyNetwork(), sinsr_inputs(diffusion)
    everything = sinsr_terms(network, diffusion, **inputs)
    network.batches.clear()
    some = sinsr_terms(network, diffusion, **inputs, fused=fused, terms=subset)
    assert list(some) == [term for term in TERMS if term in subset]
    for term, value in some.items():
        assert value.shape == (3,)
        torch.testing.assert_close(value, everything[term])
    assert sum(network.batches) == 3 * (len(subset) + ("ground_truth" in subset))


def test_invalid_terms_are_refused(diffusion: ResShiftDiffusion) -> None:
    inputs = sinsr_inputs(diffusion)
    with pytest.raises(ValueError, match="perceptual"):
        sinsr_terms(TinyNetwork(), diffusion, **inputs, terms=["perceptual"])
    with pytest.raises(ValueError, match="at least one"):
        sinsr_terms(TinyNetwork(), diffusion, **inputs, terms=[])
    with pytest.raises(ValueError, match="x_T or x0_teacher is None; inversion must have both"):
        sinsr_terms(TinyNetwork(), diffusion, **(inputs | {"x0_teacher": None}), terms=["inversion", "ground_truth"])
    with pytest.raises(ValueError, match=r"x0_teacher is \(2,"):
        sinsr_terms(TinyNetwork(), diffusion, **(inputs | {"x0_teacher": inputs["x0_teacher"][:2]}))
