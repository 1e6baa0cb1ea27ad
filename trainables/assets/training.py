"""What the trainings of the shipped networks share: optimiser, schedule, averaged weights, seeds, pools of examples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.assets.resumable import Resumable, Stateful, learning_rate_factor
from trainables.training.ema import ExponentialMovingAverage

Example = TypeVar("Example")
Step = Callable[[int], Mapping[str, float]]

# (height, width) of images, and how often each is drawn. Sides are multiples of 16. Networks restore other sizes than
# 64 px too.
SIZES = ((64, 64), (64, 96), (96, 64), (96, 96))
SIZE_SHARES = (0.7, 0.1, 0.1, 0.1)


class Recipe(Protocol):
    """Attributes:
    steps: optimiser steps. learning_rate: at its peak. ema_decay: of the averaged weights. seed: of everything random.
    """

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def ema_decay(self) -> float: ...
    @property
    def seed(self) -> int: ...


class Training:
    """A network with its optimiser and its average. A step is `begin`, a loss, `descend`.

    Attributes:
        average: `average.applied()` exchanges the weights for the averaged ones.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._model, self._recipe = model, recipe
        self.average = ExponentialMovingAverage(model, recipe.ema_decay)
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=1e-4, betas=(0.9, 0.99)
        )

    def begin(self, number: int) -> np.random.Generator:
        """Sets the learning rate and seeds torch; returns the step's own generator."""
        rng = np.random.default_rng([self._recipe.seed, number])
        torch.manual_seed(int(rng.integers(2**31)))
        factor = learning_rate_factor(number, self._recipe.steps)
        self._optimiser.param_groups[0]["lr"] = self._recipe.learning_rate * factor
        return rng

    def descend(self, loss: Tensor) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimiser.step()
        self.average.update()

    def run(self, folder: Path, name: str, step: Step, measure: Step, log: Callable[[str], None]) -> None:
        """See `Resumable`."""
        parts: dict[str, Stateful] = {"model": self._model, "average": self.average, "optimiser": self._optimiser}
        Resumable(folder, name, self._recipe.steps, parts).run(step, measure, log)


class Pool(Generic[Example]):
    """Examples of several sizes, each used several times, because making one costs more than a step on it. The pool is
    not part of a checkpoint: a resumed run starts with a new one.

    Args:
        counts: examples in a batch of each of `SIZES`.
        size: examples kept of each size. fresh: share of a batch that is newly made.
        make: (count, height, width, rng) -> new examples.
    """

    def __init__(
        self,
        counts: Sequence[int],
        size: int,
        fresh: float,
        make: Callable[[int, int, int, np.random.Generator], Iterable[Example]],
    ) -> None:
        self._counts, self._fresh, self._make = counts, fresh, make
        self._kept: list[deque[Example]] = [deque(maxlen=size) for _ in SIZES]

    def batch(self, rng: np.random.Generator) -> list[Example]:
        """Examples of one size: the new ones, newest first, then some that were used before."""
        which = int(rng.choice(len(SIZES), p=SIZE_SHARES))
        kept, count = self._kept[which], self._counts[which]
        full = len(kept) >= 4 * count  # not at the start, nor after a resume
        fresh = max(1, round(count * self._fresh)) if full else count
        kept.extend(self._make(fresh, *SIZES[which], rng))
        newest = [kept[-1 - i] for i in range(fresh)]
        return newest + [kept[i] for i in rng.integers(len(kept), size=count - fresh)]
