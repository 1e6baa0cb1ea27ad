"""The loss terms of a trial since its last report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from trainables.training.reporting import LossRow, TrialDiverged


class Logged(NamedTuple):
    """A term of the loss for the log: raw, and weighted as in the sum. Scalars."""

    value: Tensor
    weighted: Tensor


class LossLog:
    """Loss terms since the last report.

    Values stay on the device until a row is due, because reading one would make a GPU wait for the CPU in every step.
    So NaN is noticed up to `every` steps late, but reported with its own step.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.steps = 0
        self._pending: list[tuple[int, str, Logged]] = []
        self._rows: list[LossRow] = []
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, step: int, terms: Mapping[str, Logged]) -> None:
        self._pending += [(step, name, term) for name, term in terms.items()]

    def end_step(self, step: int) -> None:
        self.steps += 1
        if step % self.every == 0:
            self.check()

    def check(self) -> None:
        """Reads the pending values.

        Raises:
            TrialDiverged: one of them is NaN or infinite.
        """
        if not self._pending:
            return
        values = self._values()
        if dist.is_initialized() and dist.get_world_size() > 1:
            # Each worker has only its share of the batch. NCCL needs the values on the GPU, where they are.
            dist.all_reduce(values)
            values /= dist.get_world_size()
        row: dict[str, list[float]] = {}
        for (step, name, _), (value, weighted) in zip(self._pending, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise TrialDiverged(f"loss term {name!r} is {value} at step {step}")
            if not math.isfinite(weighted):
                raise TrialDiverged(f"the weight of loss term {name!r} makes it {weighted} at step {step}")
            for tag, number in ((f"loss/{name}", value), (f"weighted/{name}", weighted)):
                row.setdefault(tag, []).append(number)
        for tag, numbers in row.items():
            self._sums[tag] = self._sums.get(tag, 0.0) + sum(numbers)
            self._counts[tag] = self._counts.get(tag, 0) + len(numbers)
        last = self._pending[-1][0]
        self._rows.append((last, {tag: sum(numbers) / len(numbers) for tag, numbers in row.items()}))
        self._pending = []

    def check_share(self) -> None:
        """Checks this worker's share of the pending values, without the other workers. They stay pending.

        Raises:
            TrialDiverged: as `check`.
        """
        if self._pending and not self._values().isfinite().all():
            raise TrialDiverged(f"a loss term is not finite up to step {self._pending[-1][0]}")

    def _values(self) -> Tensor:
        """(terms, 2): value and weighted value of each pending term."""
        return torch.stack([number for _, _, term in self._pending for number in term]).view(-1, 2)

    def means(self) -> dict[str, float]:
        return {tag: self._sums[tag] / self._counts[tag] for tag in self._sums}

    def take(self) -> list[LossRow]:
        """The rows since the last call; clears them."""
        rows = self._rows
        self.steps, self._rows, self._sums, self._counts = 0, [], {}, {}
        return rows
