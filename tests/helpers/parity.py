"""Comparisons with public code: equal draws for both sides, and how far two tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def uniform(seed: int, *shape: int) -> Tensor:
    """Numbers in [-1, 1), float32."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape)).float()


def drawn_weights(seed: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights of small networks, by the same rule as for the official code. Name -> shape in, name -> weight out."""
    rng, state = np.random.default_rng(seed), {}
    for name, shape in sorted(shapes.items()):
        draw = torch.from_numpy(rng.uniform(-1.7, 1.7, shape)).float()
        if len(shape) > 1:
            state[name] = draw / math.sqrt(math.prod(shape[1:]))
        else:
            state[name] = 1 + 0.2 * draw if name.endswith(".weight") else 0.1 * draw
    return state


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    return float((actual - expected).detach().abs().max() / expected.abs().max())
