"""Score distillation, which pulls restored latents towards those that a diffusion model finds likely.

Variational: Wang et al., "ProlificDreamer" (NeurIPS 2023), as in Wu et al., "One-Step Effective Diffusion Network for
Real-World Image Super-Resolution" (OSEDiff, NeurIPS 2024), and its official code at https://github.com/cswry/OSEDiff.
Of a classifier: Yu et al., "Text-to-3D with Classifier Score Distillation" (ICLR 2024), as in Sun et al., "Pixel-level
and Semantic-level Adjustable Super-resolution" (PiSA-SR, CVPR 2025), and its official code at
https://github.com/csslc/PiSA-SR. Shapes and symbols are those of `gaussian`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.diffusion.gaussian import Denoise, GaussianDiffusion
from trainables.diffusion.resshift import per_sample_mse

FIRST, LAST = 0.02, 0.98
"""Shares of the schedule between which the score is compared: officially timesteps 20 to 979 of 1000."""
CLASSIFIER_LAST = 0.5
"""The same of the classifier's score: officially timesteps 20 to 499."""


def distillation_timesteps(diffusion: GaussianDiffusion, uniform: Tensor, end: float = LAST) -> Tensor:
    """Timesteps of `distillation_loss`, `(B,)` int64, from numbers in [0, 1).

    Args:
        end: share of the schedule below which they are.
    """
    first, last = (int(share * diffusion.max_timestep) for share in (FIRST, end))
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
        natural, restored = base(x_t, t), score(x_t, t)
    return _pull(diffusion, natural, restored, x0, x_t, t)


def classifier_distillation_loss(
    diffusion: GaussianDiffusion,
    positive: Denoise,
    negative: Denoise,
    guidance: float,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """Classifier score distillation, a scalar; `cal_csd` of PiSA-SR's `pisasr.py`.

    As `distillation_loss`, from the estimate of `negative` to that of the guided network.

    Args:
        positive, negative: the pretrained network with two prompts.
        guidance: see `trainables.diffusion.guidance`.
    """
    with torch.no_grad():
        x_t = diffusion.add_noise(x0, t, noise)
        away = negative(x_t, t)
        towards = away + guidance * (positive(x_t, t) - away)
    return _pull(diffusion, towards, away, x0, x_t, t)


def _pull(diffusion: GaussianDiffusion, towards: Tensor, away: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The loss whose gradient moves `x0` from the estimate of one output to that of another."""
    with torch.no_grad():
        natural, restored = (diffusion.predict_x0(output, x_t, t) for output in (towards, away))
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
