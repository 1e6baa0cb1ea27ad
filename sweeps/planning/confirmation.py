"""The confirmation: which configurations it trains, and how many trials that takes.

After the search, the leaders and the baseline are trained again with fresh seeds and measured on the test photographs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FIRST_SEED = 10_000
"""Seed offset of the first trial of a confirmation; far above those of a search, so that every seed is fresh."""
FEWEST_SEEDS = 2  # one seed says nothing about the variation between seeds


@dataclass(frozen=True)
class Confirmation:
    """Attributes:
    finalists: largest number of configurations to confirm besides the baseline.
    seeds: fresh seeds of each of them, and of the baseline.
    """

    finalists: int
    seeds: int

    def trials(self, others: int) -> int:
        """The number of trials.

        Args:
            others: configurations that finished, besides the baseline. With none there is nothing to confirm.
        """
        chosen = min(self.finalists, others)
        return (1 + chosen) * self.seeds if chosen else 0

    def smaller(self, others: int) -> list[Confirmation]:
        """This confirmation, then those that take less time: with fewer finalists, then with fewer seeds.

        Args:
            others: configurations that finished, besides the baseline; with none the list is empty.
        """
        finalists = range(min(self.finalists, others), 0, -1)
        fewer = [Confirmation(1, seeds) for seeds in range(self.seeds - 1, FEWEST_SEEDS - 1, -1)] if finalists else []
        return [Confirmation(count, self.seeds) for count in finalists] + fewer


def leaders(found: Mapping[str, Sequence[float]], baseline: str, count: int, larger_is_better: bool) -> list[str]:
    """The best configurations of a search, best first, without the baseline.

    Args:
        found: configuration -> the objective of its finished trials; their mean counts. NaN is no result.
        count: the largest number of them.
    """
    means = {
        name: statistics.fmean(values)
        for name, values in found.items()
        if name != baseline and values and all(map(math.isfinite, values))
    }
    return sorted(means, key=lambda name: -means[name] if larger_is_better else means[name])[:count]


def trial_id(number: int) -> str:
    """The id of a trial of the confirmation, "c000"."""
    return f"c{number:03d}"
