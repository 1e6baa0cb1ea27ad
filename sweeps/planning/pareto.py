"""The Pareto front of several objectives: non-dominated sorting, its spread, its ends and its knee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def non_dominated(gains: Array) -> list[int]:
    """The indices of the front: of the points that no other one equals or beats in all objectives and beats in one.

    Args:
        gains: (N, M), larger is better. No value is NaN.
    """
    kept = np.ones(len(gains), dtype=bool)
    for k in np.argsort(-gains.sum(axis=1)):  # in this order most points are beaten early
        if kept[k]:
            others = gains[kept]
            kept[kept] = (others > gains[k]).any(axis=1) | (others == gains[k]).all(axis=1)
    return [int(k) for k in np.flatnonzero(kept)]


def fronts(gains: Array) -> list[list[int]]:
    """Non-dominated sorting.

    Args:
        gains: (N, M), larger is better. No value is NaN.

    Returns:
        The indices of each front; the first front is dominated by nothing.
    """
    left, found = np.arange(len(gains)), []
    while len(left):
        front = left[non_dominated(gains[left])]
        found.append([int(k) for k in front])
        left = np.setdiff1d(left, front)
    return found


def epsilon_net(gains: Array) -> list[int]:
    """The order of a front: the best in the first objective, then always the one farthest from those taken.

    Args:
        gains: (N, M). Distances are measured in units of each objective's range.
    """
    spread = gains.max(axis=0) - gains.min(axis=0)
    scaled = gains / np.where(spread > 0, spread, 1.0)
    order = [int(np.argmax(scaled[:, 0]))]
    distances = np.linalg.norm(scaled - scaled[order[0]], axis=1)
    while len(order) < len(scaled):
        distances[order] = -1.0
        order.append(int(np.argmax(distances)))
        distances = np.minimum(distances, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
    return order


def knee(gains: Array) -> int:
    """The configuration of a front that is nearest to the best of every objective, in units of each objective's range.

    Args:
        gains: (N, M), larger is better.
    """
    spread = gains.max(axis=0) - gains.min(axis=0)
    missing = (gains.max(axis=0) - gains) / np.where(spread > 0, spread, 1.0)
    return int(np.argmin(np.linalg.norm(missing, axis=1)))


def ends_and_knee(gains: Mapping[str, Sequence[float]]) -> list[str]:
    """Configurations in the order in which they are confirmed: the best of each objective and the knee of the front,
    then the rest of it as an epsilon-net spreads, then the next fronts.

    Args:
        gains: configuration -> its objectives, larger is better.
    """
    names, values = list(gains), np.array(list(gains.values()), dtype=np.float64)
    if not names:
        return []
    first, *others = fronts(values)
    of_first = values[first]
    chosen = [first[int(np.argmax(of_first[:, m]))] for m in range(values.shape[1])]
    chosen += [first[knee(of_first)], *(first[k] for k in epsilon_net(of_first))]
    chosen += [front[k] for front in others for k in epsilon_net(values[front])]
    return [names[k] for k in dict.fromkeys(chosen)]
