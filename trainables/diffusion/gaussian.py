"""Gaussian diffusion: noise schedules, prediction types, and deterministic sampling.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020); the sampler of Song et al., "Denoising Diffusion
Implicit Models" (ICLR 2021); v-prediction of Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion
Models" (ICLR 2022); zero terminal SNR and timestep spacings of Lin et al., "Common Diffusion Noise Schedules and
Sample Steps are Flawed" (WACV 2024). The numbers equal those of diffusers' `DDIMScheduler`.

`x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`, for latents or pixels `(B, ...)` of about unit variance, timesteps `t:
(B,)` int64 in `[0, max_timestep)`, one per sample, and standard normal noise. Arithmetic is float32 for any precision
of the network, and float64 for float64 states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from trainables.diffusion.resshift import StepNoise, per_sample_mse

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""`(x_t: (B, ...), t: (B,) int64) -> prediction: (B, ...)`; a closure over the conditioning."""


def alphas_cumprod(
    train_timesteps: int, beta_start: float, beta_end: float, beta_schedule: BetaSchedule, zero_terminal_snr: bool
) -> Tensor:
    """`abar_t`, the share of the signal's variance left at `t`: float32 `(T,)`, decreasing, in [0, 1).

    Args:
        train_timesteps: `T`.
        beta_start: variance added by the first step; not used by `squaredcos_cap_v2`.
        beta_end: variance added by the last step; not used by `squaredcos_cap_v2`.
        beta_schedule: `linear` in beta, `scaled_linear` in its square root (Stable Diffusion), or the capped cosine
            of Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (ICML 2021).
        zero_terminal_snr: shift and scale `sqrt(abar)` so that the last value is exactly zero and the first unchanged.

    Raises:
        ValueError: a value out of its range; the message names it.
    """
    if train_timesteps < 2:
        raise ValueError(f"train_timesteps is {train_timesteps}; a noise schedule needs at least 2")
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"beta_start is {beta_start} and beta_end {beta_end}; 0 < beta_start <= beta_end < 1 must hold"
        )
    if beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, train_timesteps, dtype=torch.float64)
    elif beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_timesteps, dtype=torch.float64) ** 2
    elif beta_schedule == "squaredcos_cap_v2":
        time = torch.linspace(0, 1, train_timesteps + 1, dtype=torch.float64)
        cosine = torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - cosine[1:] / cosine[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"beta_schedule is {beta_schedule!r}; it must be one of {list(get_args(BetaSchedule))}")
    abar = (1 - betas).cumprod(dim=0)
    if zero_terminal_snr:
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return abar.float()


class GaussianDiffusion:
    """The forward chain, the three prediction types, and the deterministic sampler.

    Args:
        alphas_cumprod: `abar_t`, `(T,)`, from `alphas_cumprod`.
        prediction_type: the network's output: the noise (`epsilon`), `x0` (`sample`) or
            `v = sqrt(abar) noise - sqrt(1 - abar) x0` (`v_prediction`).
        max_timestep: the chain ends before this timestep; training and sampling use `[0, max_timestep)`.

    Raises:
        ValueError: a value out of its range, or `epsilon` with a last timestep without signal: there the noise is the
            state itself, and does not determine `x0`.

    Example:
        >>> abar = alphas_cumprod(1000, 0.00085, 0.012, "scaled_linear", zero_terminal_snr=True)
        >>> diffusion = GaussianDiffusion(abar, "sample", max_timestep=1000)
        >>> y, noise = torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
        >>> diffusion.sample_ddim(lambda x_t, t: y, y, noise, steps=4, spacing="trailing").equal(y)
        True
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: PredictionType, max_timestep: int) -> None:
        abar = alphas_cumprod.detach().cpu().double()
        if abar.ndim != 1 or not len(abar) or not (abar[0] < 1 and abar[-1] >= 0 and (abar.diff() < 0).all()):
            raise ValueError("alphas_cumprod must be a vector of decreasing numbers in [0, 1)")
        if prediction_type not in get_args(PredictionType):
            raise ValueError(
                f"prediction_type is {prediction_type!r}; it must be one of {list(get_args(PredictionType))}"
            )
        if not 1 <= max_timestep <= len(abar):
            raise ValueError(f"max_timestep is {max_timestep}; it must be in [1, {len(abar)}], the schedule's length")
        if prediction_type == "epsilon" and abar[max_timestep - 1] == 0:
            raise ValueError(
                f"prediction_type is 'epsilon' and zero_terminal_snr leaves no signal at timestep {max_timestep - 1}; "
                "predict 'sample' or 'v_prediction', or choose a smaller max_timestep"
            )
        self.prediction_type = prediction_type
        self.train_timesteps = len(abar)
        self.max_timestep = max_timestep
        self.alphas_cumprod = abar[:max_timestep]
        """`abar_t`, float64 `(max_timestep,)` on the CPU."""
        self._tables = torch.stack([self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()])
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def cut(self, max_timestep: int) -> GaussianDiffusion:
        """The same chain up to an earlier timestep, as for sampling from there; `train_timesteps` stays.

        Raises ValueError unless `max_timestep` is on the chain.
        """
        shorter = GaussianDiffusion(self.alphas_cumprod, self.prediction_type, max_timestep)
        shorter.train_timesteps = self.train_timesteps
        return shorter

    def _check(self, t: Tensor, x: Tensor, **others: Tensor) -> None:
        if t.dtype != torch.int64 or t.shape != x.shape[:1]:
            raise ValueError(f"t is {t.dtype} {tuple(t.shape)}; it must be int64 ({x.shape[0]},), one per sample")
        # Reading values on an accelerator would stall its queue, so only the CPU is checked.
        if t.device.type == "cpu" and t.numel():
            low, high = int(t.min()), int(t.max())
            if low < 0 or high >= self.max_timestep:
                raise ValueError(f"t has values in [{low}, {high}]; they must be in [0, {self.max_timestep - 1}]")
        for name, other in others.items():
            if other.shape != x.shape:
                raise ValueError(f"{name} is {tuple(other.shape)}; it must be {tuple(x.shape)}")

    def _scales(self, t: Tensor, like: Tensor) -> Iterable[Tensor]:
        """`sqrt(abar_t)` and `sqrt(1 - abar_t)`, `(B, 1, ...)` each, on `like`'s device."""
        key = (like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)
        if key not in self._on_device:
            self._on_device[key] = self._tables.to(*key)
        return self._on_device[key][:, t].view(2, -1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """`x_t`, a draw of `q(x_t | x0)`, `(B, ...)`."""
        self._check(t, x0, noise=noise)
        signal, sigma = self._scales(t, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The network's target for `add_noise(x0, t, noise)`, `(B, ...)`."""
        self._check(t, x0, noise=noise)
        signal, sigma = self._scales(t, x0)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        return signal * noise - sigma * x0

    def predict_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The `x0`, `(B, ...)`, implied by the network's output.

        For `epsilon` its error is that of the predicted noise times `sqrt(1 - abar_t) / sqrt(abar_t)`, so a loss on
        `x0` is a loss on the noise, weighted by timestep.
        """
        self._check(t, x_t, output=output)
        signal, sigma = self._scales(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * output) / signal
        if self.prediction_type == "sample":
            return output.to(signal.dtype)
        return signal * x_t - sigma * output

    def predict_noise(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise, `(B, ...)`, implied by the network's output."""
        self._check(t, x_t, output=output)
        signal, sigma = self._scales(t, x_t)
        if self.prediction_type == "epsilon":
            return output.to(signal.dtype)
        if self.prediction_type == "sample":
            return (x_t - signal * output) / sigma
        return signal * output + sigma * x_t

    def min_snr_weights(self, t: Tensor, gamma: float) -> Tensor:
        """Weights of the squared errors of the network's output, float32 `(B,)`, that weigh errors of `x0` by
        `min(SNR, gamma)`.

        Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (ICCV 2023); `SNR = abar / (1 -
        abar)`. A timestep without signal has weight 0.

        Args:
            gamma: above 0, published: 5.
        """
        abar = self.alphas_cumprod.to(t.device)[t]
        snr = abar / (1 - abar)
        of_x0 = snr.clamp(max=gamma)
        if self.prediction_type == "epsilon":
            of_x0 = of_x0 / snr
        elif self.prediction_type == "v_prediction":
            of_x0 = of_x0 / (snr + 1)
        return of_x0.float()

    def training_loss(self, denoise: Denoise, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The unweighted objective: the mean squared error of every sample's prediction, `(B,)`."""
        return per_sample_mse(denoise(self.add_noise(x0, t, noise), t), self.target(x0, noise, t))

    def timesteps(self, steps: int, spacing: TimestepSpacing, steps_offset: int = 0) -> list[int]:
        """`steps` timesteps to sample at, descending, as diffusers chooses them from `[0, max_timestep)`.

        `trailing` starts at the last one; `linspace` includes both ends; `leading` starts up to a stride below the
        last. With one step, `leading` and `linspace` choose the *first* timestep, where a network expects almost no
        noise; use `trailing` for one step.

        Args:
            steps_offset: added to `leading`; 1 in Stable Diffusion's configuration.

        Raises:
            ValueError: an unknown spacing, or too many steps or too large an offset for the chain.
        """
        if not 1 <= steps <= self.max_timestep:
            raise ValueError(f"steps is {steps}; it must be in [1, {self.max_timestep}], the length of the chain")
        if spacing == "leading":
            chosen: np.ndarray = np.arange(steps) * (self.max_timestep // steps) + steps_offset
            if steps_offset < 0 or chosen[-1] >= self.max_timestep:
                room = self.max_timestep - 1 - chosen[-1] + steps_offset
                raise ValueError(f"steps_offset is {steps_offset}; with {steps} steps it must be in [0, {room}]")
            chosen = chosen[::-1]
        elif spacing == "trailing":
            # For some counts, rounding makes `arange` one too long, and diffusers continues to timestep -1.
            chosen = np.arange(self.max_timestep, 0, -self.max_timestep / steps)[:steps].round() - 1
        elif spacing == "linspace":
            chosen = np.linspace(0, self.max_timestep - 1, steps).round()[::-1]
        else:
            raise ValueError(f"spacing is {spacing!r}; it must be one of {list(get_args(TimestepSpacing))}")
        return [int(t) for t in chosen]

    def start(self, y: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The state at `t`, the first sampled timestep, `(B, ...)`.

        A whole chain (`max_timestep == T`) starts from `noise` alone, as Stable Diffusion's samplers do. With zero
        terminal SNR that is exactly `x_T`; otherwise the small signal in `x_T` is left out.

        A chain cut at a smaller `max_timestep` was trained only on states that contain signal. Pure noise is not one of
        them, and the timesteps of pure noise were not trained. So it starts from `y`, the best guess of `x0`, under the
        noise of `t`. The larger `max_timestep` is, the more of the guess's error this noise hides.

        Args:
            y: the degraded image in the space of `x0`, `(B, ...)`.
        """
        if self.max_timestep < self.train_timesteps:
            return self.add_noise(y, t, noise)
        self._check(t, y, noise=noise)
        return noise

    @torch.no_grad()
    def sample_ddim(
        self,
        denoise: Denoise,
        y: Tensor,
        noise: Tensor,
        steps: int,
        spacing: TimestepSpacing,
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
    ) -> Tensor:
        """Deterministic DDIM (eta 0) in `steps` network calls: `y, noise: (B, ...) -> x0: (B, ...)`, without gradients.

        Every step leads to the next of `timesteps`. diffusers steps back by `T // steps` instead. That is the same
        timestep only if they are evenly spaced at that distance: always for `leading`, for `trailing` if `steps`
        divides `T`, almost never for `linspace`.

        Args:
            y, noise: see `start`.
            steps_offset: see `timesteps`.
            set_alpha_to_one: diffusers' name: whether the last step ends at `x0`, or at timestep 0 with a small rest of
                noise, as in Stable Diffusion's configuration.
        """
        timesteps = self.timesteps(steps, spacing, steps_offset)
        return self._sample(denoise, y, noise, timesteps, None if set_alpha_to_one else 0)

    @torch.no_grad()
    def sample_ancestral(
        self,
        denoise: Denoise,
        y: Tensor,
        noise: Tensor,
        steps: int,
        spacing: TimestepSpacing,
        step_noise: StepNoise,
        steps_offset: int = 0,
    ) -> Tensor:
        """Ancestral sampling (Ho et al. 2020), DDIM with eta 1: fresh noise in every step but the last; otherwise as
        `sample_ddim`.

        With "linspace" these are the steps of `p_sample_loop` of StableSR's `ldm/models/diffusion/ddpm.py`.

        Args:
            step_noise: standard normal noise, given the timestep at which it is added.
        """
        return self._sample(denoise, y, noise, self.timesteps(steps, spacing, steps_offset), None, step_noise)

    def _sample(
        self,
        denoise: Denoise,
        y: Tensor,
        noise: Tensor,
        timesteps: list[int],
        last: int | None,
        step_noise: StepNoise | None = None,
    ) -> Tensor:
        """Steps from each timestep to the next one, and to `last`; None: to `x0`. Without `step_noise`, the noise of a
        state is the predicted one.
        """
        x = self.start(y, noise, full_timestep(timesteps[0], y))
        for step, previous in zip(timesteps, [*timesteps[1:], last], strict=True):
            t = full_timestep(step, y)
            output = denoise(x, t)
            x0 = self.predict_x0(output, x, t)
            if previous is None:
                return x0
            rest = self.predict_noise(output, x, t)
            if step_noise is not None:
                # DDIM's sigma_t as a share of the noise at `previous`; the rest is the predicted noise.
                abar, abar_previous = (float(self.alphas_cumprod[i]) for i in (step, previous))
                fresh = math.sqrt((1 - abar / abar_previous) / (1 - abar))
                rest = math.sqrt(max(0.0, 1 - fresh**2)) * rest + fresh * step_noise(previous)
            x = self.add_noise(x0, full_timestep(previous, y), rest)
        return x


def full_timestep(timestep: int, like: Tensor) -> Tensor:
    """`timestep` for every sample of `like: (B, ...)`: `(B,)` int64 on its device."""
    return torch.full(like.shape[:1], timestep, dtype=torch.int64, device=like.device)
