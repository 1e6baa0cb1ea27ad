"""Properties of Gaussian diffusion and of CCSR's truncated sampling that hold for any network."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from trainables.diffusion.ccsr import (
    JUMP_TERMS,
    ccsr_jump_terms,
    ccsr_timesteps,
    sample_truncated,
    spaced_timesteps,
)
from trainables.diffusion.gaussian import GaussianDiffusion, PredictionType, TimestepSpacing, alphas_cumprod

SHAPE = (3, 2, 4, 6)
KINDS = pytest.mark.parametrize("kind", get_args(PredictionType))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed))


def make(kind: PredictionType, max_timestep: int = 1000, zero_terminal_snr: bool = False) -> GaussianDiffusion:
    abar = alphas_cumprod(1000, 0.00085, 0.012, "scaled_linear", zero_terminal_snr)
    return GaussianDiffusion(abar, kind, max_timestep)


class Oracle:
    """Knows `x0`, and outputs the exact prediction for any state; records its inputs."""

    def __init__(self, diffusion: GaussianDiffusion, x0: Tensor) -> None:
        self.diffusion, self.x0 = diffusion, x0
        self.seen: list[int] = []
        self.states: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x_t.shape[:1] and len(set(t.tolist())) == 1
        self.seen.append(int(t[0]))
        self.states.append(x_t)
        abar = self.diffusion.alphas_cumprod[t].float().view(-1, *[1] * (x_t.ndim - 1))
        noise = (x_t - abar.sqrt() * self.x0) / (1 - abar).sqrt()
        return self.diffusion.target(self.x0, noise, t)


@KINDS
@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 2, 3, 5), (4, 2, 3, 3, 2)])
def test_target_gives_back_x0_and_noise(kind: PredictionType, shape: tuple[int, ...]) -> None:
    diffusion, t = make(kind), torch.tensor([0, 30, 500, 999])
    x0, noise = normal(0, *shape).double(), normal(1, *shape).double()
    x_t, target = diffusion.add_noise(x0, t, noise), diffusion.target(x0, noise, t)
    torch.testing.assert_close(diffusion.predict_x0(target, x_t, t), x0)
    torch.testing.assert_close(diffusion.predict_noise(target, x_t, t), noise)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_zero_terminal_snr_ends_in_pure_noise(kind: PredictionType) -> None:
    diffusion, t = make(kind, zero_terminal_snr=True), torch.full((3,), 999)
    x0, noise = normal(0), normal(1)
    x_t, target = diffusion.add_noise(x0, t, noise), diffusion.target(x0, noise, t)
    assert torch.equal(x_t, noise)
    torch.testing.assert_close(diffusion.predict_x0(target, x_t, t), x0)
    torch.testing.assert_close(diffusion.predict_noise(target, x_t, t), noise)


def test_forward_chain_has_the_stated_mean_and_variance() -> None:
    diffusion, t = make("epsilon"), torch.tensor([0, 100, 500, 999])
    x0, noise = normal(0, 4, 1, 256, 256), normal(1, 4, 1, 256, 256)
    abar = diffusion.alphas_cumprod[t].float()
    residual = diffusion.add_noise(x0, t, noise) - abar.sqrt().view(-1, 1, 1, 1) * x0
    torch.testing.assert_close(residual.mean((1, 2, 3)), torch.zeros(4), rtol=0, atol=0.02)
    torch.testing.assert_close(residual.var((1, 2, 3)), 1 - abar, rtol=0.02, atol=0)


def test_epsilon_x0_loss_is_weighted_noise_loss() -> None:
    """|x0_hat - x0| = |eps_hat - eps| sqrt(1 - abar) / sqrt(abar): the two losses differ by timestep only."""
    diffusion, t = make("epsilon"), torch.tensor([10, 400, 999])
    x0, noise, output = (normal(seed).double() for seed in range(3))
    x_t = diffusion.add_noise(x0, t, noise)
    latent_loss = (diffusion.predict_x0(output, x_t, t) - x0).abs().flatten(1).mean(1)
    noise_loss = (output - noise).abs().flatten(1).mean(1)
    abar = diffusion.alphas_cumprod[t]
    torch.testing.assert_close(latent_loss, noise_loss * ((1 - abar) / abar).sqrt())


@KINDS
def test_training_loss_is_per_sample_and_zero_for_the_target(kind: PredictionType) -> None:
    diffusion, t = make(kind), torch.tensor([5, 300, 900])
    x0, noise = normal(0), normal(1)
    target = diffusion.target(x0, noise, t)
    offset = torch.tensor([0.0, 1.0, 2.0]).view(-1, 1, 1, 1)
    loss = diffusion.training_loss(lambda x_t, t: target + offset, x0, t, noise)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0]))


@KINDS
@pytest.mark.parametrize("spacing", get_args(TimestepSpacing))
@pytest.mark.parametrize("max_timestep", [1000, 300])
def test_oracle_is_sampled_exactly(kind: PredictionType, spacing: TimestepSpacing, max_timestep: int) -> None:
    diffusion = make(kind, max_timestep)
    oracle = Oracle(diffusion, normal(0))
    sample = diffusion.sample_ddim(oracle, normal(1), normal(2), steps=6, spacing=spacing)
    torch.testing.assert_close(sample, oracle.x0, rtol=0, atol=1e-4)
    assert oracle.seen == diffusion.timesteps(6, spacing)


def test_whole_chain_starts_from_noise_and_cut_chain_from_noised_input() -> None:
    y, noise = normal(0), normal(1)
    whole, cut = Oracle(make("sample"), normal(2)), Oracle(make("sample", 400), normal(2))
    whole.diffusion.sample_ddim(whole, y, noise, 3, "trailing")
    assert whole.seen[0] == 999 and torch.equal(whole.states[0], noise)
    cut.diffusion.sample_ddim(cut, y, noise, 3, "trailing")
    assert cut.seen[0] == 399
    assert torch.equal(cut.states[0], cut.diffusion.add_noise(y, torch.full((3,), 399), noise))


@KINDS
def test_arithmetic_is_float32_under_autocast(kind: PredictionType) -> None:
    diffusion, t = make(kind), torch.tensor([0, 500, 999])
    x0, noise, output = normal(0), normal(1), normal(2).bfloat16()
    x_t = diffusion.add_noise(x0, t, noise)
    for predict in (diffusion.predict_x0, diffusion.predict_noise):
        expected = predict(output.float(), x_t, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = predict(output, x_t, t)
        assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(diffusion.add_noise(x0, t, noise), x_t)
        assert diffusion.training_loss(lambda x_t, t: output, x0, t, noise).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train_timesteps": 1}, "train_timesteps is 1"),
        ({"beta_start": 0.0}, r"beta_start is 0\.0"),
        ({"beta_start": 0.5}, r"beta_start is 0\.5 and beta_end 0\.012"),
        ({"beta_end": 1.0}, r"beta_end 1\.0"),
        ({"beta_schedule": "cosine"}, "beta_schedule is 'cosine'"),
    ],
)
def test_invalid_schedules_are_refused(settings: dict[str, Any], named: str) -> None:
    schedule = {"train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
    with pytest.raises(ValueError, match=named):
        alphas_cumprod(**(schedule | settings), zero_terminal_snr=False)


def test_invalid_chains_are_refused() -> None:
    with pytest.raises(ValueError, match="'epsilon' and zero_terminal_snr"):
        make("epsilon", zero_terminal_snr=True)
    make("epsilon", max_timestep=999, zero_terminal_snr=True)  # ends before the timestep without signal
    with pytest.raises(ValueError, match="prediction_type is 'x0'"):
        make("x0")  # type: ignore[arg-type]
    for max_timestep in (0, 1001):
        with pytest.raises(ValueError, match=f"max_timestep is {max_timestep}"):
            make("sample", max_timestep)
    for abar in (torch.tensor([0.5, 0.5]), torch.tensor([0.5, float("nan")]), torch.tensor([1.0, 0.5])):
        with pytest.raises(ValueError, match="alphas_cumprod must"):
            GaussianDiffusion(abar, "sample", 2)


def test_invalid_arguments_are_refused() -> None:
    diffusion, x, t = make("sample", 400), normal(0), torch.tensor([0, 7, 399])
    with pytest.raises(ValueError, match=r"t has values in \[0, 400\]"):
        diffusion.add_noise(x, t + torch.tensor([0, 0, 1]), x)
    with pytest.raises(ValueError, match=r"t is torch\.float32"):
        diffusion.predict_x0(x, x, t.float())
    with pytest.raises(ValueError, match=r"it must be int64 \(3,\)"):
        diffusion.target(x, x, t[:2])
    with pytest.raises(ValueError, match=r"noise is \(1, 2, 4, 6\)"):
        make("sample").sample_ddim(lambda x_t, t: x_t, x, x[:1], 3, "trailing")
    for steps in (0, 401):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            diffusion.timesteps(steps, "leading")
    with pytest.raises(ValueError, match=r"steps_offset is 100; with 4 steps it must be in \[0, 99\]"):
        diffusion.timesteps(4, "leading", steps_offset=100)
    with pytest.raises(ValueError, match="spacing is 'even'"):
        diffusion.timesteps(4, "even")  # type: ignore[arg-type]


@KINDS
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_truncated_sampling_stays_between_its_ends(kind: PredictionType, eta: float) -> None:
    oracle = Oracle(make(kind), normal(0))
    asked = []

    def step_noise(t: int) -> Tensor:
        asked.append(t)
        return normal(t)

    y, noise = normal(1), normal(2)
    sample = sample_truncated(oracle.diffusion, oracle, y, noise, 10, 0.8, 0.3, step_noise, eta)
    torch.testing.assert_close(sample, oracle.x0, rtol=0, atol=1e-3)
    timesteps = spaced_timesteps(oracle.diffusion, 10)
    assert oracle.seen == [999, *timesteps[2:7]]
    assert asked == timesteps[2:7]
    assert torch.equal(oracle.states[0], noise)


def test_stochastic_steps_keep_the_marginal() -> None:
    """For any share of fresh noise, every state is distributed as q(x_t | x0)."""
    diffusion = make("sample")
    for eta in (0.0, 0.5, 1.0):
        oracle = Oracle(diffusion, normal(0, 1, 1, 256, 256))
        noise = normal(1, 1, 1, 256, 256)
        sample_truncated(diffusion, oracle, noise, noise, 12, 1.0, 0.0, torch.Generator().manual_seed(2), eta)
        for t, state in zip(oracle.seen[1:], oracle.states[1:], strict=True):
            abar = float(diffusion.alphas_cumprod[t])
            residual = state - abar**0.5 * oracle.x0
            assert float(residual.mean()) == pytest.approx(0, abs=0.02)
            assert float(residual.var()) == pytest.approx(1 - abar, rel=0.03)


def test_fresh_noise_depends_on_the_generator_only() -> None:
    diffusion, y, noise = make("sample"), normal(0), normal(1)

    def sample(seed: int, eta: float = 1.0) -> Tensor:
        torch.randn(1)  # advances the global generator
        generator = torch.Generator().manual_seed(seed)
        return sample_truncated(diffusion, lambda x, t: 0.5 * x, y, noise, 9, 0.7, 0.3, generator, eta)

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    assert not torch.equal(sample(3), sample(3, eta=0.0))


def test_training_timesteps_cover_the_chain_below_the_jump() -> None:
    t = ccsr_timesteps(make("epsilon"), 0.05, 2000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64 and sorted(set(t.tolist())) == list(range(50))


def test_jump_terms_of_an_oracle_vanish_and_reach_the_first_prediction() -> None:
    diffusion = make("sample")
    x0, end_noise, jump_noise = (normal(seed) for seed in range(3))
    terms = ccsr_jump_terms(diffusion, Oracle(diffusion, x0), x0, end_noise, jump_noise, 0.5)
    assert tuple(terms) == JUMP_TERMS
    for value in terms.values():
        torch.testing.assert_close(value, torch.zeros(3), rtol=0, atol=1e-6)

    gain = torch.ones(2, requires_grad=True)
    diffusion = make("v_prediction")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return gain[int(t[0] == 999)] * x_t

    terms = ccsr_jump_terms(diffusion, denoise, x0, end_noise, jump_noise, 0.5)
    for term, reached in (("x0", [False, True]), ("x0_from_tau", [True, True]), ("noise_from_tau", [True, True])):
        (gradient,) = torch.autograd.grad(terms[term].sum(), gain, retain_graph=True)
        assert [bool(value != 0) for value in gradient] == reached


def test_empty_truncations_are_refused() -> None:
    diffusion, x = make("sample"), normal(0)

    def sample(steps: int, t_max: float, t_min: float, eta: float = 1.0) -> Tensor:
        return sample_truncated(diffusion, lambda x_t, t: x_t, x, x, steps, t_max, t_min, torch.Generator(), eta)

    for t_max, t_min in ((0.3, 0.6), (0.5, 0.5), (1.1, 0.5), (0.5, -0.1), (0.50, 0.49), (float("nan"), 0.2)):
        with pytest.raises(ValueError, match=f"t_max is {t_max} and t_min {t_min}"):
            sample(10, t_max, t_min)
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            sample(steps, 0.8, 0.3)
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        sample(10, 0.8, 0.3, eta=1.5)
    for t_max in (0.0, 1.0, 0.0001, 0.9999):
        with pytest.raises(ValueError, match=f"t_max is {t_max}"):
            ccsr_timesteps(diffusion, t_max, 1, torch.Generator())


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weighs_errors_of_x0_alike(kind: PredictionType) -> None:
    """For every prediction type the weighted squared error is min(SNR, 5) times that of the x_0 that it implies."""
    diffusion = make(kind)
    t = torch.tensor([3, 200, 600, 990])
    x0, noise, error = (torch.randn(4, 2, 3, 3, dtype=torch.float64) for _ in range(3))
    x_t, target = diffusion.add_noise(x0, t, noise), diffusion.target(x0, noise, t)
    output = target + 0.1 * error
    of_output = (output - target).square().mean(dim=(1, 2, 3))
    of_x0 = (diffusion.predict_x0(output, x_t, t) - x0).square().mean(dim=(1, 2, 3))
    abar = diffusion.alphas_cumprod[t]
    expected = (abar / (1 - abar)).clamp(max=5) * of_x0
    torch.testing.assert_close(diffusion.min_snr_weights(t, 5.0).double() * of_output, expected, rtol=1e-5, atol=1e-9)


def test_cut_chain_starts_from_the_degraded_image() -> None:
    """As one that was trained on the lower timesteps alone, with the same tables."""
    whole, cut, short = make("sample"), make("sample").cut(400), make("sample", 400)
    y, noise = torch.randn(2, 1, 2, 3, 3).unbind()
    t = torch.full((1,), 399)
    y, noise = y[:1], noise[:1]
    assert torch.equal(cut.start(y, noise, t), short.start(y, noise, t))
    assert torch.equal(whole.start(y, noise, t), noise)
    assert cut.timesteps(4, "trailing") == short.timesteps(4, "trailing")
    with pytest.raises(ValueError, match="max_timestep is 1001"):
        make("sample").cut(1001)
