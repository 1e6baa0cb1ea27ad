"""One interval per finalist against the baseline, wide enough for the variation between photographs and between seeds.

Measurements of single images go in; one finding per finalist comes out, with an interval or with the reason why there
is none. Formulae and sources are in `sweeps.answering.estimates`; docs/statistics.md explains and calibrates them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Literal, NamedTuple

import numpy as np

from sweeps.answering.estimates import (
    LEVEL,
    Array,
    Estimate,
    Spread,
    detectable,
    estimate,
    half_widths,
    holm_levels,
    p_values,
    spread,
)

Trials = dict[int | None, dict[tuple[str, str], float]]  # seed -> (photograph, image) -> value
Verdict = Literal["better", "worse", "not distinguishable"]


class ImageValue(NamedTuple):
    """One metric of one image, restored by one trained network.

    Attributes:
        configuration: name of what was trained, or of a control.
        seed: seed of the training; None for a control, which is deterministic.
        photograph: name of the photograph that the image was cut from.
        image: name of the image, unique within its photograph.
        value: the metric; NaN and infinite values count as missing.
    """

    configuration: str
    seed: int | None
    photograph: str
    image: str
    value: float


class NoInterval(Enum):
    """Why a configuration has no interval, in words."""

    NOT_MEASURED = "none of its trials was measured"
    REFERENCE_NOT_MEASURED = "no trial of what it is compared with was measured"
    ONE_SEED = "only one of its seeds was measured, so the variation between seeds is unknown"
    REFERENCE_ONE_SEED = (
        "only one seed of what it is compared with was measured, so the variation between seeds is unknown"
    )
    NOTHING_IN_COMMON = "the two were measured on no image in common"
    ONE_PHOTOGRAPH = "the images are all of one photograph, so the variation between photographs is unknown"


@dataclass(frozen=True)
class Interval:
    """An estimated difference, in the metric's unit; positive where the configuration is the better one.

    Attributes:
        mean: the estimate. low, high: ends of the interval.
        level: confidence level at which it is shown, in (0, 1).
        standard_error: square root of the estimated variance of `mean`.
        df: its degrees of freedom.
        p: two-sided p-value of "no difference", before the correction for several finalists.
        detectable: smallest true difference that would have been told at this level in 80 % of such confirmations.
        photographs_share: part of the variance that more photographs would reduce, in [0, 1]; only more
            seeds reduce the rest.
    """

    mean: float
    low: float
    high: float
    level: float
    standard_error: float
    df: float
    p: float
    detectable: float
    photographs_share: float


@dataclass(frozen=True)
class Finding:
    """One configuration against the reference.

    Attributes:
        configuration: its name.
        interval: None where there is none; then `reason` says why.
        reason: None where there is an interval.
        seeds, reference_seeds: trained networks on either side; 0 for a control.
        photographs, images: what both sides were measured on.
        images_left_out: images that only a part of the trials of either side were measured on.
        trials: ids of the configuration's trials, the best on validation first; empty if the caller knows none.
    """

    configuration: str
    interval: Interval | None
    reason: NoInterval | None
    seeds: int
    reference_seeds: int
    photographs: int
    images: int
    images_left_out: int
    trials: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What the interval says; nothing can be told without one."""
        if self.interval is not None and self.interval.low > 0:
            return "better"
        if self.interval is not None and self.interval.high < 0:
            return "worse"
        return "not distinguishable"


def compare(
    test: Iterable[ImageValue],
    reference: str,
    others: Sequence[str],
    larger_is_better: bool,
    validation: Iterable[ImageValue] = (),
    level: float = LEVEL,
    family: int = 0,
) -> tuple[Finding, ...]:
    """Compare every one of `others` with `reference`: finalists with the baseline, or controls with the winner.

    Args:
        test: all measurements on test photographs, also of configurations that are in neither `reference` nor `others`:
            their seeds help to estimate the variation between seeds.
        validation: measurements of the same trials on validation photographs, which tell how much differences vary
            from photograph to photograph. They should have about as many images a photograph as the test ones.
        level: confidence level before the correction for several, in (0, 1).
        family: number of comparisons to correct for, where there were more than `others`: a winner picked from
            K finalists is compared with C controls in K * C ways.

    Returns:
        One finding for each of `others`, in their order. What cannot be compared has a reason instead of an interval;
        it still counts in the correction.

    Raises:
        ValueError: a level out of range, a name twice, or two values of one image.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a number between 0 and 1")
    if reference in others or len(set(others)) < len(others):
        raise ValueError(f"{reference!r} and {list(others)} are not all different")
    sign = 1.0 if larger_is_better else -1.0
    tables, further = _tables(test, sign), _tables(validation, sign)
    names = tables.keys() - {reference}
    seeded = [_aligned(tables[name])[0] for name in sorted(names) if len(tables[name]) > 1]
    crossed = [_aligned(further[name])[0] for name in sorted(names & further.keys()) if len(further[name]) > 1]
    others_spread = spread([table for table in seeded if table.size], [table for table in crossed if table.size])

    found = [_pair(name, reference, tables, further, others_spread) for name in others]
    told = [made for _, made in found if made is not None]
    intervals = iter(_intervals(told, level, max(family, len(others))))
    return tuple(finding if made is None else replace(finding, interval=next(intervals)) for finding, made in found)


def _tables(measurements: Iterable[ImageValue], sign: float) -> dict[str, Trials]:
    """Finite values by configuration, seed and image; larger is better."""
    tables: dict[str, Trials] = {}
    for row in measurements:
        if math.isfinite(row.value):
            trial = tables.setdefault(row.configuration, {}).setdefault(row.seed, {})
            if (row.photograph, row.image) in trial:
                raise ValueError(f"two values of {row.photograph}, {row.image}: {row.configuration}, seed {row.seed}")
            trial[row.photograph, row.image] = sign * row.value
    return tables


def _aligned(*configurations: Trials) -> tuple[Array, ...]:
    """(seeds, P) means over the images that all trials of all of these were measured on, P photographs."""
    trials = [trial for configuration in configurations for trial in configuration.values()]
    images = sorted(set.intersection(*(set(trial) for trial in trials)))
    photographs = sorted({photograph for photograph, _ in images})
    weights = np.array([[float(photograph == of) for of, _ in images] for photograph in photographs])
    if not photographs:
        return tuple(np.zeros((len(configuration), 0)) for configuration in configurations)
    weights /= weights.sum(axis=1, keepdims=True)
    return tuple(
        np.array([[trial[image] for image in images] for trial in configuration.values()]) @ weights.T
        for configuration in configurations
    )


def _pair(
    name: str, reference: str, tables: Mapping[str, Trials], further: Mapping[str, Trials], others_spread: Spread
) -> tuple[Finding, Estimate | None]:
    """A finding without its interval, and the estimate for it where there can be one."""
    its, base = tables.get(name, {}), tables.get(reference, {})
    counts = [len([seed for seed in trials if seed is not None]) for trials in (its, base)]
    trials = [set(trial) for side in (its, base) for trial in side.values()]
    common = set.intersection(*trials) if its and base else set()
    photographs = len({photograph for photograph, _ in common})
    left_out = len(set().union(*trials)) - len(common)

    reason = None
    if not its:
        reason = NoInterval.NOT_MEASURED
    elif not base:
        reason = NoInterval.REFERENCE_NOT_MEASURED
    elif counts[0] == 1:
        reason = NoInterval.ONE_SEED
    elif counts[1] == 1:
        reason = NoInterval.REFERENCE_ONE_SEED
    elif not common:
        reason = NoInterval.NOTHING_IN_COMMON
    elif photographs == 1:
        reason = NoInterval.ONE_PHOTOGRAPH
    finding = Finding(name, None, reason, counts[0], counts[1], photographs, len(common), left_out)
    if reason is not None:
        return finding, None

    other, baseline = _aligned(its, base)
    more: tuple[Array, ...] = ()
    if name in further and reference in further:
        more = _aligned(further[name], further[reference])
        more = more if more[0].shape[-1] > 1 else ()
    made = estimate(other, baseline, others_spread, spread([baseline], more[1:]), *(more or (None, None)))
    return finding, made


def _intervals(estimates: Sequence[Estimate], level: float, family: int) -> list[Interval]:
    """The intervals of K single estimates, at the levels at which Holm tests them."""
    if not estimates:
        return []
    joined = Estimate(*(np.array([getattr(made, field.name) for made in estimates]) for field in fields(Estimate)))
    levels = holm_levels(joined, level, family)
    halves, errors, p = half_widths(joined, levels), np.sqrt(joined.variance), p_values(joined)
    only_seeds = np.maximum(joined.seeds - joined.overlap, 0.0)
    share = 1 - only_seeds / np.where(joined.variance > 0, joined.variance, 1.0)
    return [
        Interval(
            mean=float(joined.mean[index]),
            low=float(joined.mean[index] - halves[index]),
            high=float(joined.mean[index] + halves[index]),
            level=float(levels[index]),
            standard_error=float(errors[index]),
            df=float(joined.df[index]),
            p=float(p[index]),
            detectable=detectable(float(errors[index]), float(joined.df[index]), float(levels[index])),
            photographs_share=float(share[index]),
        )
        for index in range(len(estimates))
    ]
