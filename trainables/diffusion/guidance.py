"""Classifier-free guidance: away from the estimate under one condition, towards that under another.

Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022). Shapes and symbols are those of `gaussian`.
"""

from __future__ import annotations

from torch import Tensor

from trainables.diffusion.gaussian import Denoise


def guided(positive: Denoise, negative: Denoise, scale: float) -> Denoise:
    """The network whose output is negative + scale * (positive - negative), in two passes.

    Args:
        positive, negative: one network under two conditions; the second may be the empty one.
        scale: 1 gives the output of `positive`, above 1 exaggerates the difference.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        away = negative(x_t, t)
        return away + scale * (positive(x_t, t) - away)

    return denoise
