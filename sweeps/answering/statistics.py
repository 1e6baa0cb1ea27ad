"""Resampling and correction for multiple tests. `sweeps.answering.comparison` decides with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.05
_SIGN_FLIPS = 10_000
_DUNNETT_DRAWS = 20_000
_CHUNK = 4_000_000  # numbers in memory at once in the resampling loops: 32 MB


def bootstrap_weights(photographs: Sequence[str], resamples: int, rng: np.random.Generator) -> Array:
    """Image weights of bootstrap resamples that draw photographs first, then images within each.

    Args:
        photographs: name of each image's photograph, (N,).

    Returns:
        (resamples, N), rows sum to 1: `weights @ values` are the resampled means.
    """
    _, code, size = np.unique(np.asarray(photographs), return_inverse=True, return_counts=True)
    images, groups, largest = len(code), len(size), int(size.max())
    by_photograph = np.argsort(code, kind="stable")
    first = np.cumsum(size) - size
    weights = np.empty((resamples, images))
    rows = max(1, _CHUNK // (groups * largest))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        chosen = rng.integers(groups, size=(count, groups))
        within = np.floor(rng.random((count, groups, largest)) * size[chosen, None]).astype(np.int64)
        image = by_photograph[first[chosen, None] + within]
        drawn = np.arange(largest) < size[chosen, None]  # a photograph of n images gets n draws
        cell = (np.arange(count)[:, None, None] * images + image)[drawn]
        weights[start : start + count] = np.bincount(cell, minlength=count * images).reshape(count, images)
    return weights / weights.sum(axis=1, keepdims=True)


def interval(weights: Array, values: Array) -> tuple[Array, Array]:
    """95 % percentile interval of the mean of `values` (N, ...) under `bootstrap_weights`."""
    low, high = np.quantile(weights @ values, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    return low, high


def sign_flip_p(differences: Array, rng: np.random.Generator) -> Array:
    """Two-sided p-values for a mean difference of 0, by flipping the signs of whole images.

    Uses all 2^N sign patterns if there are at most 4096, else 10,000 random ones plus the observed one.

    Args:
        differences: (N, T), one column per comparison.

    Returns:
        (T,).
    """
    images, columns = differences.shape
    observed = np.abs(differences.sum(axis=0)) * (1 - 1e-9)  # equal sums must count as equal
    if images <= 12:
        patterns = (np.arange(2**images)[:, None] >> np.arange(images)) & 1
        return np.mean(np.abs((1.0 - 2.0 * patterns) @ differences) >= observed, axis=0)
    as_large = np.zeros(columns)
    rows = max(1, _CHUNK // images)
    for start in range(0, _SIGN_FLIPS, rows):
        patterns = rng.integers(0, 2, size=(min(rows, _SIGN_FLIPS - start), images), dtype=np.int8)
        as_large += np.sum(np.abs((1.0 - 2.0 * patterns) @ differences) >= observed, axis=0)
    return (1 + as_large) / (1 + _SIGN_FLIPS)


def holm(p: Array, family: int) -> Array:
    """Holm's step-down correction of `p` (T,) within a family of `family` >= T tests.

    Tests of the family that are not in `p` count as having the largest p-values.
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate((family - np.arange(len(p))) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def pooled_sd(groups: Sequence[Sequence[float] | Array]) -> tuple[float, int]:
    """Standard deviation within groups of repeated measurements, pooled, and its degrees of freedom.

    (NaN, 0) if no group has two members.
    """
    repeated = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    df = sum(len(group) - 1 for group in repeated)
    if not df:
        return math.nan, 0
    return math.sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in repeated) / df), df


def dunnett_p(t: Array, seeds: Sequence[int], baseline_seeds: int, df: int, rng: np.random.Generator) -> Array:
    """P-values of many comparisons with one baseline (Dunnett 1955), by simulation.

    All comparisons share the baseline's mean and the estimate of the spread. The p-value is the probability that
    chance alone makes the largest t-value at least as large as the given one.

    Args:
        t: (T,) absolute t-values of the measured comparisons.
        seeds: number of seeds of every configuration in the family, the T measured ones first.
        baseline_seeds: number of seeds of the baseline.
        df: degrees of freedom of the spread.

    Returns:
        (T,).
    """
    m = np.asarray(seeds, dtype=float)
    means = rng.standard_normal((_DUNNETT_DRAWS, len(m))) / np.sqrt(m)
    baseline = rng.standard_normal((_DUNNETT_DRAWS, 1)) / math.sqrt(baseline_seeds)
    spread = np.sqrt(rng.chisquare(df, size=(_DUNNETT_DRAWS, 1)) / df)
    largest = np.max(np.abs(means - baseline) / (spread * np.sqrt(1 / m + 1 / baseline_seeds)), axis=1)
    as_large = _DUNNETT_DRAWS - np.searchsorted(np.sort(largest), t, side="left")
    return (1 + as_large) / (1 + _DUNNETT_DRAWS)
