"""CCSR: diffusion for the structure of an image in the middle of the chain, and a decoder for its detail.

Sun et al., "Improving the Stability and Efficiency of Diffusion Models for Content Consistent Super-Resolution"
(arXiv 2401.00877), and its official code at https://github.com/csslc/CCSR.

The chain is cut at both ends. One prediction of `x0` at its noisy end replaces all steps above `t_max`. Stochastic
steps follow from `t_max` down to `t_min`. The `x0` predicted there goes to the decoder, which is fine-tuned to add the
detail of the remaining steps. `t_max` and `t_min` are fractions of the chain; officially 0.6667 and 0.3333. Shapes and
symbols are those of `gaussian`; the conditioning is inside the denoiser.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise, repeat

import torch
from torch import Tensor

from trainables.diffusion.gaussian import Denoise, GaussianDiffusion, full_timestep
from trainables.diffusion.resshift import StepNoise, per_sample_mse

JUMP_TERMS = ("x0", "x0_from_tau", "noise_from_tau")


def spaced_timesteps(diffusion: GaussianDiffusion, steps: int) -> list[int]:
    """`steps` timesteps from the last to 0, descending, with the even spacing of guided-diffusion's code.

    Like `linspace`, but adds up the stride with its rounding errors, so that halves may round differently: 45 of 1000
    timesteps, the official number, include 499, where `linspace` has 500. Raises ValueError unless
    2 <= steps <= max_timestep.
    """
    if not 2 <= steps <= diffusion.max_timestep:
        raise ValueError(f"steps is {steps}; it must be in [2, {diffusion.max_timestep}], the length of the chain")
    stride = (diffusion.max_timestep - 1) / (steps - 1)
    return [round(t) for t in accumulate(repeat(stride, steps - 1), initial=0.0)][::-1]


def truncated_timesteps(diffusion: GaussianDiffusion, steps: int, t_max: float, t_min: float) -> tuple[int, list[int]]:
    """The last timestep of the chain, and the sampled timesteps between `t_max` and `t_min`, descending.

    Raises:
        ValueError: fractions that leave no timestep, or another value out of its range.
    """
    timesteps = spaced_timesteps(diffusion, steps)
    kept = timesteps[steps - round(steps * t_max) : steps - round(steps * t_min)] if 0 <= t_min < t_max <= 1 else []
    if not kept:
        raise ValueError(f"t_max is {t_max} and t_min {t_min}; 0 <= t_min < t_max <= 1 must keep some of {steps} steps")
    return timesteps[0], kept


@torch.no_grad()
def sample_truncated(
    diffusion: GaussianDiffusion,
    denoise: Denoise,
    y: Tensor,
    noise: Tensor,
    steps: int,
    t_max: float,
    t_min: float,
    step_noise: torch.Generator | StepNoise,
    eta: float = 1.0,
) -> Tensor:
    """The `x0` that CCSR passes to the decoder, `(B, ...)`, without gradients: `sample_ccsr` of `model/q_sampler.py`.

    Takes `1 + round(steps t_max) - round(steps t_min)` network calls, 16 with the official settings. The official
    sampler rounds the timestep that it jumps to and the one that it continues from separately. They are equal for its
    45 steps; where they differ, both are the second one here, as in the official training of the decoder.

    Args:
        y, noise: the start of the chain, see `GaussianDiffusion.start`. A whole chain starts from the state `noise`
            itself: pure noise to restore an image; the noised ground truth in the official training of the decoder
            (`p_losses` of `ldm/models/diffusion/ddpm_ccsr_stage2.py`).
        steps: number of sampled timesteps of the whole chain, 45 in the official code.
        t_max, t_min: the fractions of them between which to sample, `0 <= t_min < t_max <= 1`.
        step_noise: source of fresh noise, for the jump and then for every step but the last. A generator draws
            `y.shape` float32 standard normals on its own device, so a CPU generator gives the same noise for any device
            of `y`. A callable gets the timestep at which the noise is added.
        eta: share of a step's noise that is fresh, in [0, 1]: 1 as in the official code (DDPM), 0 for deterministic
            steps (DDIM) after the jump.

    Raises:
        ValueError: see `truncated_timesteps`; or `eta` is out of its range.
    """
    last, kept = truncated_timesteps(diffusion, steps, t_max, t_min)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must be in [0, 1]")

    def draw(timestep: int) -> Tensor:
        if isinstance(step_noise, torch.Generator):
            return torch.randn(y.shape, generator=step_noise, device=step_noise.device).to(y.device)
        return step_noise(timestep)

    t = full_timestep(last, y)
    x = diffusion.start(y, noise, t)
    x0 = diffusion.predict_x0(denoise(x, t), x, t)
    x = diffusion.add_noise(x0, full_timestep(kept[0], y), draw(kept[0]))
    for step, previous in pairwise(kept):
        t = full_timestep(step, y)
        output = denoise(x, t)
        x0 = diffusion.predict_x0(output, x, t)
        # DDIM's sigma_t as a share of the noise at `previous`; the rest is the predicted noise.
        abar, abar_previous = (float(diffusion.alphas_cumprod[i]) for i in (step, previous))
        fresh = eta * math.sqrt((1 - abar / abar_previous) / (1 - abar))
        kept_noise = math.sqrt(1 - fresh**2) * diffusion.predict_noise(output, x, t)
        x = diffusion.add_noise(x0, full_timestep(previous, y), kept_noise + fresh * draw(previous))
    t = full_timestep(kept[-1], y)
    return diffusion.predict_x0(denoise(x, t), x, t)


def jump_timestep(diffusion: GaussianDiffusion, t_max: float) -> int:
    """`tau`, the timestep that training jumps to and draws below: `round(max_timestep t_max)`, officially 667 of 1000.

    Raises ValueError unless `t_max` is inside (0, 1) and `tau` on the chain.
    """
    tau = round(diffusion.max_timestep * t_max)
    if not (0 < t_max < 1 and 0 < tau < diffusion.max_timestep):
        raise ValueError(f"t_max is {t_max}; of {diffusion.max_timestep} timesteps it must keep some, but not all")
    return tau


def ccsr_timesteps(diffusion: GaussianDiffusion, t_max: float, batch: int, generator: torch.Generator) -> Tensor:
    """Timesteps of `GaussianDiffusion.training_loss`, uniform in `[0, tau)`: `(batch,)` int64 on the generator's
    device.

    These, and the two timesteps of `ccsr_jump_terms`, are CCSR's non-uniform timestep learning: sampling never calls
    the denoiser between `tau` and the end of the chain, so it is not trained there.
    """
    tau = jump_timestep(diffusion, t_max)
    return torch.randint(tau, (batch,), generator=generator, device=generator.device)


def ccsr_jump_terms(
    diffusion: GaussianDiffusion, denoise: Denoise, x0: Tensor, end_noise: Tensor, jump_noise: Tensor, t_max: float
) -> dict[str, Tensor]:
    """Per-sample mean squared errors that train the jump, `(B,)` each, keyed by `JUMP_TERMS`.

    - `x0`: the `x0` predicted at the end of the chain against the ground truth.
    - `x0_from_tau`: that prediction, noised to `tau` and predicted again, against the ground truth.
    - `noise_from_tau`: the noise implied by this second prediction against the added noise.

    Gradients of the last two reach the first prediction too. In the official code (`p_losses` of
    `ldm/models/diffusion/ddpm_ccsr_stage1.py`) all three have weight 1, and so has `GaussianDiffusion.training_loss` at
    `ccsr_timesteps`, which takes its own optimiser step on every batch.

    Args:
        denoise: called twice, at the end of the chain and at `tau`.
        x0: latents of the ground truth, `(B, ...)`.
        end_noise, jump_noise: the noise added at the end of the chain and at `tau`, shaped like `x0`.
    """
    end, tau = full_timestep(diffusion.max_timestep - 1, x0), full_timestep(jump_timestep(diffusion, t_max), x0)
    x_end = diffusion.add_noise(x0, end, end_noise)
    x0_end = diffusion.predict_x0(denoise(x_end, end), x_end, end)
    x_tau = diffusion.add_noise(x0_end, tau, jump_noise)
    output = denoise(x_tau, tau)
    return {
        "x0": per_sample_mse(x0_end, x0),
        "x0_from_tau": per_sample_mse(diffusion.predict_x0(output, x_tau, tau), x0),
        "noise_from_tau": per_sample_mse(diffusion.predict_noise(output, x_tau, tau), jump_noise),
    }
