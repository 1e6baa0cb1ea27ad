"""Noise of samplers that depends on given numbers alone, and multi-resolution noise for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def step_noise(keys: Sequence[Sequence[int]], like: Tensor) -> Callable[[int], Tensor]:
    """The noise that a stochastic sampler adds at a timestep to the images of `like`, (B, ...).

    Args:
        keys: for every image the numbers that determine its noise, such as the batch's `noise_key`.
    """

    def draw(timestep: int) -> Tensor:
        drawn = [
            np.random.default_rng([*key, 1 + timestep]).standard_normal(like.shape[1:], np.float32) for key in keys
        ]
        return torch.from_numpy(np.stack(drawn)).to(like.device)

    return draw


def coarse_levels(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """White noise of ever coarser grids, enlarged to one size: `(B, C, h, w)` -> `(B, levels, C, h, w)`.

    As in Marigold's training (`multi_res_noise_like` of its `src/util/multi_res_noise.py`, strategy "original"): level
    i has a side of `1 / r^i` of the level before, with r drawn from [2, 4) for each level; level 0 has full size. The
    last one has one row or column.
    """
    batch, channels, height, width = shape
    tall, wide, levels = height, width, []
    for level in range(10):
        ratio = float(torch.rand(1, generator=generator, device=generator.device)) * 2 + 2
        tall, wide = (max(1, int(side / ratio**level)) for side in (tall, wide))
        drawn = torch.randn((batch, channels, tall, wide), generator=generator, device=generator.device)
        levels.append(F.interpolate(drawn, (height, width), mode="bilinear", align_corners=False))
        if min(tall, wide) == 1:
            break
    return torch.stack(levels, dim=1)


def multi_resolution_noise(white: Tensor, levels: Tensor, strength: Tensor) -> Tensor:
    """`white` plus `strength^i` of level i, each image scaled to unit variance: `(B, C, h, w)`.

    Marigold scales the whole batch to unit variance, so that an image's noise depends on the others of its batch.

    Args:
        white: `(B, C, h, w)` standard normal.
        levels: `(B, levels, C, h, w)` of `coarse_levels`.
        strength: `(B,)`, in [0, 1].
    """
    powers = strength[:, None] ** torch.arange(levels.shape[1], device=levels.device)
    noise = white + (levels * powers.view(*powers.shape, 1, 1, 1)).sum(dim=1)
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)
