"""Equal draws for two trainings: ours and that of public code. Each depends on its name and step alone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

STEPS = 30


def _generator(name: str, step: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), step])


def normal(name: str, step: int, *shape: int) -> Tensor:
    """Standard normal, float32."""
    return torch.from_numpy(_generator(name, step).standard_normal(shape, np.float32))


def images(name: str, step: int, *shape: int) -> Tensor:
    """Numbers in [-1, 1), float32."""
    return torch.from_numpy(_generator(name, step).uniform(-1, 1, shape)).float()


def uniform(name: str, step: int, count: int) -> Tensor:
    """Numbers in [0, 1), float32."""
    return torch.from_numpy(_generator(name, step).uniform(0, 1, count)).float()


def weights(name: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights by their names: normal over the root of the fan-in, around 1 for normalisations."""
    drawn = {}
    for key, value in own.items():
        draw = normal(f"{name}/{key}", 0, *value.shape)
        if value.ndim > 1:
            drawn[key] = draw / float(np.sqrt(value[0].numel()))
        else:
            drawn[key] = 1 + 0.2 * draw if key.endswith("weight") else 0.1 * draw
    return drawn
