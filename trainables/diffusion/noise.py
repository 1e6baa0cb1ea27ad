"""Noise that depends on given numbers alone, not on the batch or the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
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
