"""ASHA's rungs, for one objective or several.

With one objective this is ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020) with
the rungs and the rule of Ray Tune's `ASHAScheduler`. With several, a rung is ranked as in multi-objective ASHA
(Schmucker et al., "Multi-objective Asynchronous Successive Halving", 2021): by non-dominated sorting, and within a
front by an epsilon-net, which takes next the trial that is farthest from those already taken.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sweeps.planning.pareto import Array, epsilon_net, fronts


def scores(gains: Array) -> Array:
    """(N,), larger is better: minus the position in the ranking by several objectives.

    Args:
        gains: (N, M), larger is better.
    """
    ranking = [front[k] for front in fronts(gains) for k in epsilon_net(gains[front])]
    result = np.empty(len(gains))
    result[ranking] = -np.arange(len(gains), dtype=np.float64)
    return result


def percentile(ranked: Sequence[float], percent: float) -> float:
    """`numpy.percentile` of sorted values, equal to the last digit, in a time that does not grow with them."""
    place = percent / 100 * (len(ranked) - 1)
    low, share = math.floor(place), place - math.floor(place)
    below, above = ranked[low], ranked[min(low + 1, len(ranked) - 1)]
    return above - (above - below) * (1 - share) if share >= 0.5 else below + (above - below) * share


class Rungs:
    """Rungs at `first`, `first * factor`, `first * factor**2`, ... steps.

    A configuration counts once at a rung, by the first of its trials: with other seeds, a good one would be a rival of
    every proposal. Whatever the order in which trials reach a rung, the same ones count.

    Args:
        first, last: steps of the first rung and of a whole trial.
        factor: a trial continues if it is not worse than the best 1/factor of those that reached the rung before it.
    """

    def __init__(self, first: int, last: int, factor: float) -> None:
        self._factor = factor
        count = int(np.log(last / first) / np.log(factor) + 1)
        self._rungs = [_Rung(first * factor**k) for k in reversed(range(count))]

    def reached(self, trial: str, step: int, gains: Sequence[float], configuration: str = "") -> bool:
        """Records a trial at the highest rung that it has reached; returns whether it stops there.

        Args:
            gains: its objectives, larger is better.
            configuration: the same text for trials that differ in their seeds only; empty for one without others.
        """
        for rung in self._rungs:
            if step < rung.step or trial in rung.trials:
                continue
            stops = bool(rung.counted) and self._is_worse(gains, rung)
            rung.trials.add(trial)
            rung.count(trial, tuple(gains), configuration or trial)
            return stops
        return False

    def _is_worse(self, gains: Sequence[float], rung: _Rung) -> bool:
        percent = (1 - 1 / self._factor) * 100
        if len(gains) == 1:  # a list of all values for each trial would take a time that grows with the square
            return bool(rung.ranked) and gains[0] < percentile(rung.ranked, percent)
        known = [gains for _, gains in rung.counted.values()]
        *others, own = scores(np.array([*known, tuple(gains)], dtype=np.float64))
        return bool(own < np.nanpercentile(others, percent))


@dataclass
class _Rung:
    """Attributes:
    step: of the rung.
    trials: ids of those that have reached it.
    counted: configuration -> (order of its first trial, the gains of that one).
    ranked: these gains of a single objective, sorted, without NaN.
    """

    step: float
    trials: set[str] = field(default_factory=set)
    counted: dict[str, tuple[tuple[int, str], tuple[float, ...]]] = field(default_factory=dict)
    ranked: list[float] = field(default_factory=list)

    def count(self, trial: str, gains: tuple[float, ...], configuration: str) -> None:
        """Counts a trial, unless an earlier one of its configuration is known."""
        order, before = (len(trial), trial), self.counted.get(configuration)
        if before is not None and before[0] <= order:
            return
        self.counted[configuration] = order, gains
        if len(gains) > 1:
            return
        if before is not None and not math.isnan(before[1][0]):
            del self.ranked[bisect.bisect_left(self.ranked, before[1][0])]
        if not math.isnan(gains[0]):
            bisect.insort(self.ranked, gains[0])
