"""Variational score distillation, which pulls restored latents towards those that a diffusion model finds likely.

Wang et al., "ProlificDreamer" (NeurIPS 2023), as in Wu et al., "One-Step Effective Diffusion Network for Real-World
Image Super-Resolution" (OSEDiff, NeurIPS 2024), and its official code at https://github.com/cswry/OSEDiff. Shapes and
symbols are those of `gaussian`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.diffusion.gaussian import Denoise, GaussianDiffusion
from trainables.diffusion.resshift import per_sample_mse

FIRST, LAST = 0.02, 0.98
"""Shares of the schedule between which the score is compared: officially timesteps 20 to 979 of 1000."""


def distillation_timesteps(diffusion: GaussianDiffusion, uniform: Tensor) -> Tensor:
    """Timesteps of `distillation_loss`, `(B,)` int64, from numbers in [0, 1)."""
    first, last = (int(share * diffusion.max_timestep) for share in (FIRST, LAST))
    return first + (uniform * (last - first)).long()


def distillation_loss(
    diffusion: GaussianDiffusion, base: Denoise, score: Denoise, x0: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Variational score distillation, a scalar; `distribution_matching_loss` of OSEDiff's `osediff.py`.

    Its value has no meaning of its own. Its gradient with respect to `x0` points from the estimate of `base` to that of
    `score`, divided by the image's mean distance to the estimate of `base`.

    Args:
        base: the pretrained network, for which natural images are likely.
        score: a network trained by `score_loss`, for which restored images are likely.
        x0: restored latents, `(B, ...)`, with gradient.
        t, noise: of the state at which both estimate.
    """
    with torch.no_grad():
        x_t = diffusion.add_noise(x0, t, noise)
        natural, restored = (diffusion.predict_x0(network(x_t, t), x_t, t) for network in (base, score))
        distance = (x0 - natural).abs().mean(dim=tuple(range(1, x0.ndim)), keepdim=True)
        wanted = x0 - (restored - natural) / distance
    return F.mse_loss(x0, wanted)


def score_loss(diffusion: GaussianDiffusion, score: Denoise, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The loss of the network that learns the score of restored latents, a scalar; `diff_loss` there.

    Args:
        x0: restored latents, without gradient.
        t: uniform over the schedule.
    """
    x_t = diffusion.add_noise(x0, t, noise)
    return per_sample_mse(score(x_t, t), diffusion.target(x0, noise, t)).mean()
