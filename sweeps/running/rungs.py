"""ASHA's rungs, for one objective or several.

With one objective this is ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020) with
the rungs and the rule of Ray Tune's `ASHAScheduler`. With several, a rung is ranked as in multi-objective ASHA
(Schmucker et al., "Multi-objective Asynchronous Successive Halving", 2021): by non-dominated sorting, and within a
front by an epsilon-net, which takes next the trial that is farthest from those already taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sweeps.planning.pareto import Array, epsilon_net, fronts


def scores(gains: Array) -> Array:
    """(N,), larger is better: the value of a single objective; of several, minus the position in the ranking.

    Args:
        gains: (N, M), larger is better.
    """
    if gains.shape[1] == 1:
        return gains[:, 0]
    ranking = [front[k] for front in fronts(gains) for k in epsilon_net(gains[front])]
    result = np.empty(len(gains))
    result[ranking] = -np.arange(len(gains), dtype=np.float64)
    return result


class Rungs:
    """Rungs at `first`, `first * factor`, `first * factor**2`, ... steps.

    Args:
        first, last: steps of the first rung and of a whole trial.
        factor: a trial continues if it is not worse than the best 1/factor of those that reached the rung before it.
    """

    def __init__(self, first: int, last: int, factor: float) -> None:
        self._factor = factor
        count = int(np.log(last / first) / np.log(factor) + 1)
        self._rungs: list[tuple[float, dict[str, tuple[float, ...]]]] = [
            (first * factor**k, {}) for k in reversed(range(count))
        ]

    def reached(self, trial: str, step: int, gains: Sequence[float]) -> bool:
        """Records a trial at the highest rung that it has reached; returns whether it stops there.

        Args:
            gains: its objectives, larger is better.
        """
        for milestone, recorded in self._rungs:
            if step < milestone or trial in recorded:
                continue
            stops = False
            if recorded:
                *others, own = scores(np.array([*recorded.values(), tuple(gains)], dtype=np.float64))
                stops = bool(own < np.nanpercentile(others, (1 - 1 / self._factor) * 100))
            recorded[trial] = tuple(gains)
            return stops
        return False
