"""Residual-shifting diffusion: a 15-step chain between a clean latent and its degraded latent.

Yue et al., "ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting" (NeurIPS 2023), and
the deterministic sampler of Wang et al., "SinSR: Diffusion-Based Image Super-Resolution in a Single Step" (CVPR 2024).

Symbols are the papers': `x0` the clean latent, `y` the latent of the bicubically upsampled degraded image, `x_t` the
chain's state, all `(B, C, H, W)` and of about unit variance; `eta_t` the share of the residual `y - x0` that is shifted
in by step `t`; `kappa` the noise level. Timesteps are 0-based as in both papers' code: the papers' step `t` is `t - 1`
here, so sampling starts at `T - 1`, almost `y` plus noise, and ends at `0`.

This file does not depend on a network: `x0` is predicted by a callable of the scaled state and the timestep.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PredictX0 = Callable[[Tensor, Tensor], Tensor]
"""`(scaled x_t: (B, C, H, W), t: (B,) int64) -> x0: (B, C, H, W)`; a closure over the conditioning."""

StepNoise = Callable[[int], Tensor]
"""`t -> noise: (B, C, H, W)`, standard normal."""


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of every sample, `(B, ...) -> (B,)`; in float32 under autocast."""
    return F.mse_loss(prediction, target, reduction="none").flatten(1).mean(dim=1)


class ResShiftDiffusion:
    """The forward chain, its posterior and the samplers of ResShift.

    Args:
        steps: `T`, the length of the chain.
        power: `p` of the paper's schedule; larger keeps the noise low for longer.
        min_noise_level: bound on `kappa * sqrt(eta_1)`, the noise at the first step.
        kappa: noise level relative to the residual.
        etas_end: `sqrt(eta_T)`; named as in the official configuration.
        bounded: bound `eta_1` by 0.001 for any `min_noise_level`, so that `x_1` stays close to `x0`. SinSR's code does;
            ResShift's code no longer does, which matters for its journal version.

    Raises:
        ValueError: a value out of its range; the message names it.

    Example:
        >>> diffusion = ResShiftDiffusion()
        >>> y, noise = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
        >>> diffusion.sample_ddim(lambda x_t, t: y, y, noise).equal(y)
        True
    """

    def __init__(
        self,
        steps: int = 15,
        power: float = 0.3,
        min_noise_level: float = 0.04,
        kappa: float = 2.0,
        etas_end: float = 0.99,
        bounded: bool = True,
    ) -> None:
        if steps < 2:
            raise ValueError(f"steps is {steps}; a residual-shifting chain needs at least 2")
        for name, value in (("power", power), ("min_noise_level", min_noise_level), ("kappa", kappa)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; it must be a positive finite number")
        sqrt_eta_start = min(min_noise_level / kappa, min_noise_level, math.sqrt(0.001) if bounded else math.inf)
        if not sqrt_eta_start < etas_end < 1:
            raise ValueError(f"etas_end is {etas_end}; it must be between {sqrt_eta_start:.4g} (start) and 1")
        beta = np.linspace(0, 1, steps) ** power
        sqrt_etas = sqrt_eta_start * (etas_end / sqrt_eta_start) ** beta
        self._build(sqrt_etas, np.arange(steps), kappa)

    def _build(self, sqrt_etas: np.ndarray, timesteps: np.ndarray, kappa: float) -> None:
        """Computes the tables; `timesteps` are those that the network gets at each step of this chain."""
        self.kappa = kappa
        self.steps = len(sqrt_etas)
        self.timesteps: tuple[int, ...] = tuple(int(t) for t in timesteps)
        self._tables = _chain_tables(sqrt_etas, kappa) | {"timestep": timesteps}
        self._on_device: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    @property
    def etas(self) -> np.ndarray:
        """`eta_t`, float64 `(T,)`, strictly increasing in (0, 1)."""
        return self._tables["eta"].copy()

    @property
    def last(self) -> int:
        """`T - 1`, the timestep of the prior."""
        return self.steps - 1

    def respace(self, steps: int) -> ResShiftDiffusion:
        """The same chain on `steps` of its timesteps, evenly spaced from 0 as in the official code.

        The network still gets the original timesteps. Raises ValueError unless 2 <= steps <= T.
        """
        if not 2 <= steps <= self.steps:
            raise ValueError(f"steps is {steps}; this chain can be respaced to 2..{self.steps} steps")
        kept = np.array([int(self.steps / steps * i) for i in range(steps)])
        chain = copy.copy(self)
        chain._build(self._tables["sqrt_eta"][kept], self._tables["timestep"][kept], self.kappa)
        return chain

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Row `t` of a table, `(B, 1, 1, 1)`, on `like`'s device; float32 unless `like` is float64."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = (like.device, dtype)
        if key not in self._on_device:
            self._on_device[key] = {
                k: torch.from_numpy(v).to(like.device, dtype if v.dtype == np.float64 else torch.int64)
                for k, v in self._tables.items()
            }
        return self._on_device[key][name][t].view(-1, *[1] * (like.ndim - 1))

    def _check(self, t: Tensor, x: Tensor, **others: Tensor) -> None:
        if t.dtype != torch.int64 or t.shape != x.shape[:1]:
            raise ValueError(f"t is {t.dtype} {tuple(t.shape)}; it must be int64 ({x.shape[0]},), one per sample")
        # Reading values on an accelerator would stall its queue, so only the CPU is checked.
        if t.device.type == "cpu" and t.numel():
            low, high = int(t.min()), int(t.max())
            if low < 0 or high > self.last:
                raise ValueError(f"t has values in [{low}, {high}]; they must be in [0, {self.last}]")
        for name, other in others.items():
            if other.shape != x.shape:
                raise ValueError(f"{name} is {tuple(other.shape)}; it must be {tuple(x.shape)}, like the state")

    def _predict(self, predict_x0: PredictX0, x_t: Tensor, t: Tensor) -> Tensor:
        return predict_x0(self.scale_input(x_t, t), self._at("timestep", t, x_t).view(-1))

    def q_sample(self, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """`x_t ~ q(x_t | x0, y) = N(x0 + eta_t (y - x0), kappa^2 eta_t I)`, for a standard normal `noise`."""
        self._check(t, x0, y=y, noise=noise)
        return x0 + self._at("eta", t, x0) * (y - x0) + self._at("std", t, x0) * noise

    def prior_sample(self, y: Tensor, noise: Tensor) -> Tensor:
        """`x_T ~ N(y, kappa^2 eta_T I)`, where sampling starts."""
        t = self._full(self.last, y)
        self._check(t, y, noise=noise)
        return y + self._at("std", t, y) * noise

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log-variance of `q(x_{t-1} | x_t, x0, y)`.

        The mean is `(B, C, H, W)`; the other two, `(B, 1, 1, 1)`, broadcast against it. The variance at `t = 0` is
        zero; its logarithm is replaced by that of `t = 1`.
        """
        self._check(t, x_t, x0=x0)
        mean = self._at("posterior_x_t", t, x_t) * x_t + self._at("posterior_x0", t, x_t) * x0
        return mean, self._at("posterior_variance", t, x_t), self._at("posterior_log_variance", t, x_t)

    def scale_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`x_t` divided by `sqrt(1 + kappa^2 eta_t)`, its standard deviation for latents of unit variance."""
        self._check(t, x_t)
        return x_t / self._at("input_std", t, x_t)

    def ddim_step(self, x0: Tensor, x_t: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """SinSR's deterministic `x_{t-1}`, which keeps the noise implied by `x0` and `x_t`; `x0` at `t = 0`."""
        self._check(t, x_t, x0=x0, y=y)
        clean, noisy, degraded = (self._at(name, t, x_t) for name in ("ddim_x0", "ddim_x_t", "ddim_y"))
        return clean * x0 + noisy * x_t + degraded * y

    def ancestral_step(self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A draw of `q(x_{t-1} | x_t, x0, y)` for a standard normal `noise`; `x0` at `t = 0`."""
        self._check(t, x_t, noise=noise)
        mean, variance, _ = self.q_posterior(x0, x_t, t)
        return mean + variance.sqrt() * noise

    @torch.no_grad()
    def sample_ddim(self, predict_x0: PredictX0, y: Tensor, noise: Tensor) -> Tensor:
        """Deterministic sampling in `T` network calls: `y, noise: (B, C, H, W) -> x0`, without gradients."""
        x = self.prior_sample(y, noise)
        for step in reversed(range(self.steps)):
            t = self._full(step, y)
            x = self.ddim_step(self._predict(predict_x0, x, t), x, y, t)
        return x

    @torch.no_grad()
    def sample_ancestral(
        self, predict_x0: PredictX0, y: Tensor, noise: Tensor, step_noise: torch.Generator | StepNoise
    ) -> Tensor:
        """ResShift's own sampler, which adds fresh noise at every step but the last; without gradients.

        Args:
            step_noise: source of that noise. A generator draws `y.shape` float32 standard normals on its own device for
                `t = T-1, ..., 1`; the draws depend only on its state, so a CPU generator gives the same noise for any
                device of `y`. A callable gets `t`, in that order.
        """
        x = self.prior_sample(y, noise)
        for step in range(self.last, 0, -1):
            if isinstance(step_noise, torch.Generator):
                fresh = torch.randn(y.shape, generator=step_noise, device=step_noise.device).to(y.device)
            else:
                fresh = step_noise(step)
            t = self._full(step, y)
            x = self.ancestral_step(self._predict(predict_x0, x, t), x, t, fresh)
        return self._predict(predict_x0, x, self._full(0, y)).to(x.dtype)

    def predict_from_prior(self, predict_x0: PredictX0, y: Tensor, noise: Tensor) -> Tensor:
        """`x0` predicted from `x_T` in one call, with gradients: the restoration of a SinSR student."""
        return self._predict(predict_x0, self.prior_sample(y, noise), self._full(self.last, y))

    def predict_x0(self, predict_x0: PredictX0, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The estimate of `x0` from a draw of `q(x_t | x0, y)`, with gradients."""
        return self._predict(predict_x0, self.q_sample(x0, y, t, noise), t)

    def training_loss(self, predict_x0: PredictX0, x0: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """ResShift's unweighted objective `||f(x_t, y, t) - x0||^2`, the mean for every sample, `(B,)`."""
        return per_sample_mse(self.predict_x0(predict_x0, x0, y, t, noise), x0)

    @staticmethod
    def _full(step: int, like: Tensor) -> Tensor:
        return torch.full(like.shape[:1], step, dtype=torch.int64, device=like.device)


def _chain_tables(sqrt_etas: np.ndarray, kappa: float) -> dict[str, np.ndarray]:
    """Every coefficient the chain needs, float64 `(T,)`."""
    eta = sqrt_etas**2
    eta_prev = np.append(0.0, eta[:-1])
    alpha = eta - eta_prev
    variance = kappa**2 * eta_prev * alpha / eta
    shrink = np.sqrt(eta_prev / eta)
    return {
        "sqrt_eta": sqrt_etas,
        "eta": eta,
        "std": kappa * sqrt_etas,
        "input_std": np.sqrt(1 + kappa**2 * eta),
        "posterior_x_t": eta_prev / eta,
        "posterior_x0": alpha / eta,
        "posterior_variance": variance,
        "posterior_log_variance": np.log(np.append(variance[1], variance[1:])),
        # x_{t-1} = x0 + eta_{t-1} (y - x0) + kappa sqrt(eta_{t-1}) eps, where eps is solved from x_t.
        "ddim_x0": 1 - eta_prev + np.sqrt(eta_prev * eta) - shrink,
        "ddim_x_t": shrink,
        "ddim_y": eta_prev - np.sqrt(eta_prev * eta),
    }
