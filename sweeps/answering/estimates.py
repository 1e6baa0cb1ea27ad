"""The variance of a difference that rests on a few photographs and a few seeds: arrays in, arrays out.

The design. Every configuration c is trained with several seeds s, and every trained network restores the same test
photographs p. The value of a photograph is the mean of its images (crops):

    y[c, s, p] = mean[c] + photograph[p] + seed[c, s] + (c x p) + (s x p within c) + noise.

The photographs are a sample and so are the seeds; both enter the interval. "c x p" says that a configuration helps
some photographs more than others: it is what a bootstrap over crops misses.

The estimate. d is the mean over the P photographs of D[p] = y[f, ., p] - y[b, ., p], the finalist's mean over its m
seeds minus the baseline's over its k. Its variance has two parts and an overlap:

    A = var(D) / P                      the variation between photographs,
    B = s_f^2 / m + s_b^2 / k           the variation between seeds; s^2 is that of a seed's mean over photographs,
    C = (r_f^2 / m + r_b^2 / k) / P     r^2 is the mean square of (s x p within c) + noise; A and B both contain it,

    variance of d = max(A, B, A + B - C).

This is the variance of a mean in a crossed design with two random factors (Cornfield & Tukey 1956; Clark 1973 for
psychology; Roe & Metz 1997 for readers and images in radiology). The interval is d +- t(level, nu) sqrt(variance).

Degrees of freedom. The parts v_i are A and the one or two terms of B; n_i are their degrees of freedom:

    1 / nu = sum_i (v_i / variance of d)^q / n_i,    but nu is at least the smallest n_i.

q = 2 is Satterthwaite (1946) and Welch (1947), which give too many where a part with two to four degrees of freedom
dominates: one that is small by chance both narrows the interval and raises nu. q = 5/4 was measured to hold the level
where q = 2 makes up to twice the promised errors, at some cost of power (docs/statistics.md).

Two ways to more degrees of freedom:

- var(D) may be pooled with the same variance over the *validation* photographs. Only the variance: d itself rests on
  test photographs alone. Choosing finalists by their mean on the validation photographs leaves this variance unbiased
  where effects are normal, and was measured to be harmless where they are skewed.
- s^2 is pooled over all configurations, unless the baseline's and the others' differ by more than chance explains (F
  test at 25 %, the usual level for such a preliminary test: Bancroft 1964); then each keeps its own.

Several finalists are corrected for by Holm (1979). An interval is shown at the level at which Holm tested it, between
1 - alpha / K and 1 - alpha, so "better" (all of it above 0), "worse" (all below) and "not distinguishable" are read
from the interval alone and agree with Holm's decision. No interval is narrower than the plain 95 % one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8
POOLING_LEVEL = 0.25
SHARE_EXPONENT = 1.25  # q above


@dataclass(frozen=True)
class Estimate:
    """Differences and their variances, for one finalist or for many simulated ones; arrays of one shape (...).

    Attributes:
        mean: the differences. variance, df: as in the module's text.
        photographs, seeds, overlap: A, B and C there.
    """

    mean: Array
    variance: Array
    df: Array
    photographs: Array
    seeds: Array
    overlap: Array


@dataclass(frozen=True)
class Spread:
    """How much values of one configuration vary, pooled over one or several of them; arrays of one shape (...).

    Attributes:
        seeds: variance between seeds of the mean over photographs.
        crossed: mean square of seed x photograph and noise, for one photograph.
        df: degrees of freedom of `seeds`; 0 where there is nothing to estimate it from.
        crossed_df: those of `crossed`.
    """

    seeds: Array
    crossed: Array
    df: int
    crossed_df: int


def spread(tables: Sequence[Array], more: Sequence[Array] = ()) -> Spread:
    """The spread between seeds within each table, pooled over tables by their degrees of freedom.

    Args:
        tables: one (..., seeds, photographs) array of means over images a configuration.
        more: the same of further photographs; used for `crossed` only.
    """
    shape = np.broadcast_shapes(*(table.shape[:-2] for table in tables)) if tables else ()
    between, crossed = np.zeros(shape), np.zeros(shape)
    df = crossed_df = 0
    for index, table in enumerate((*tables, *more)):
        seeds, photographs = table.shape[-2:]
        of_seeds = table.mean(axis=-1, keepdims=True)
        if index < len(tables):
            between += np.square(of_seeds - of_seeds.mean(axis=-2, keepdims=True)).sum(axis=(-2, -1))
            df += seeds - 1
        within = table - of_seeds
        crossed += np.square(within - within.mean(axis=-2, keepdims=True)).sum(axis=(-2, -1))
        crossed_df += (seeds - 1) * (photographs - 1)
    return Spread(between / max(df, 1), crossed / max(crossed_df, 1), df, crossed_df)


def estimate(
    other: Array,
    reference: Array,
    others_spread: Spread,
    reference_spread: Spread,
    more_other: Array | None = None,
    more_reference: Array | None = None,
    exponent: float = SHARE_EXPONENT,
) -> Estimate:
    """The difference `other` - `reference` with its variance and degrees of freedom.

    Args:
        other, reference: (..., seeds, P) values of the same P >= 2 photographs. One row is a control's, which has no
            variation between seeds.
        others_spread, reference_spread: of all configurations but the reference, and of the reference.
        more_other, more_reference: the same of further photographs (..., seeds, V), for their variance.
        exponent: q of the module's text; 2 is Satterthwaite's formula.
    """
    photographs = other.shape[-1]
    differences = other.mean(axis=-2) - reference.mean(axis=-2)
    squares, n = _squares(differences), photographs - 1
    if more_other is not None and more_reference is not None:
        squares = squares + _squares(more_other.mean(axis=-2) - more_reference.mean(axis=-2))
        n += more_other.shape[-1] - 1
    of_photographs = squares / n / photographs

    # Luck of seeds: one variance for all, or the reference's own beside the others'.
    theirs, its = (1 / len_ if len_ > 1 else 0.0 for len_ in (other.shape[-2], reference.shape[-2]))
    common, pooled = _pool(others_spread, reference_spread)
    parts = (
        (of_photographs, n),
        (np.where(pooled, common.seeds * (theirs + its), 0.0), common.df),
        (np.where(pooled, 0.0, others_spread.seeds * theirs), others_spread.df),
        (np.where(pooled, 0.0, reference_spread.seeds * its), reference_spread.df),
    )
    of_seeds = parts[1][0] + parts[2][0] + parts[3][0]
    crossed = others_spread.crossed * theirs + reference_spread.crossed * its
    overlap = np.where(pooled, common.crossed * (theirs + its), crossed) / photographs

    variance = np.maximum(np.maximum(of_photographs, of_seeds), of_photographs + of_seeds - overlap)
    scale = np.where(variance > 0, variance, 1.0)
    inverse = sum(((part / scale) ** exponent / max(n, 1) for part, n in parts), np.zeros(()))
    fewest = np.min([np.where(part > 0, max(n, 1), np.inf) for part, n in parts], axis=0)
    df = np.where(variance > 0, np.maximum(1 / np.where(inverse > 0, inverse, 1.0), fewest), 1.0)
    return Estimate(differences.mean(axis=-1), variance, df, of_photographs, of_seeds, overlap)


def _squares(values: Array) -> Array:
    """Sums of squared deviations from the mean over the last axis."""
    return np.square(values - values.mean(axis=-1, keepdims=True)).sum(axis=-1)


def _pool(others: Spread, reference: Spread) -> tuple[Spread, NDArray[np.bool_]]:
    """The spread of all together, and where it may stand for both: where an F test sees no difference."""
    df, crossed_df = others.df + reference.df, others.crossed_df + reference.crossed_df
    common = Spread(
        (others.seeds * others.df + reference.seeds * reference.df) / max(df, 1),
        (others.crossed * others.crossed_df + reference.crossed * reference.crossed_df) / max(crossed_df, 1),
        df,
        crossed_df,
    )
    if not (others.df and reference.df):
        return common, np.ones(np.shape(common.seeds), dtype=bool)
    low, high = scipy.stats.f.ppf([POOLING_LEVEL / 2, 1 - POOLING_LEVEL / 2], reference.df, others.df)
    return common, (reference.seeds >= low * others.seeds) & (reference.seeds <= high * others.seeds)


def holm_levels(estimates: Estimate, level: float = LEVEL, family: int = 0) -> Array:
    """The confidence levels (..., K) at which K finalists' intervals are shown: those at which Holm tested them.

    Holm tests the smallest p-value at alpha / K, the next at alpha / (K - 1), and so on until one is not
    rejected; those that remain are shown at that one's level, at which none of them is rejected either.

    Args:
        estimates: arrays (..., K).
        family: number of comparisons to correct for; at least K.
    """
    alpha, count = 1 - level, estimates.mean.shape[-1]
    p = p_values(estimates)
    order = np.argsort(p, axis=-1, kind="stable")
    steps = alpha / (max(family, count) - np.arange(count))
    rejected = np.logical_and.accumulate(np.take_along_axis(p, order, axis=-1) < steps, axis=-1)
    last = np.minimum(rejected.sum(axis=-1, keepdims=True), count - 1)
    alphas = np.where(rejected, steps, steps[last])
    levels = np.empty_like(p)
    np.put_along_axis(levels, order, 1 - alphas, axis=-1)
    return levels


def p_values(estimates: Estimate) -> Array:
    """Two-sided p-values of "no difference", of the estimates' shape."""
    error = np.sqrt(estimates.variance)
    t = np.abs(estimates.mean) / np.where(error > 0, error, 1.0)
    p = 2 * scipy.stats.t.sf(t, estimates.df)
    return np.where(error > 0, p, np.where(estimates.mean == 0, 1.0, 0.0))


def half_widths(estimates: Estimate, levels: Array | float) -> Array:
    """Half the widths of the intervals at `levels`, of the estimates' shape."""
    return scipy.stats.t.ppf((1 + np.asarray(levels)) / 2, estimates.df) * np.sqrt(estimates.variance)


def detectable(standard_error: float, df: float, level: float, power: float = POWER) -> float:
    """The smallest true difference whose interval at `level` excludes 0, on its side, with probability `power`.

    The noncentrality at which a noncentral t exceeds the critical value with that probability, times the standard
    error.
    """
    if standard_error == 0:
        return 0.0
    critical = scipy.stats.t.ppf((1 + level) / 2, df)
    # Quantiles of the chi distribution instead of scipy's noncentral t, which fails for large noncentralities.
    scale = np.sqrt(scipy.stats.chi2.ppf((np.arange(400) + 0.5) / 400, df) / df)

    def lack(noncentrality: float) -> float:
        return float(scipy.stats.norm.cdf(noncentrality - critical * scale).mean()) - power

    upper = critical * float(scale[-1]) + 10
    return standard_error * float(scipy.optimize.brentq(lack, 0.0, upper))
