"""The statistics of an answer: is a configuration better than the baseline, or could the difference be chance?

There are two sources of chance, and both must be ruled out:

*Images.* Both sides restored the same validation images, so differences are taken image by image. Images cut from
one photograph resemble each other. The interval of the mean difference therefore comes from a bootstrap that draws
photographs first and then images within each (Davison & Hinkley 1997, section 3.8). The p-value comes from flipping
the signs of the differences (Good 2005) and is corrected by Holm (1979).

*Seeds.* The same configuration trained with two seeds gives two results. Let s be the standard deviation between
seeds, pooled over all configurations that were trained with several seeds, with nu degrees of freedom. A difference d
between m seeds of one configuration and k seeds of the baseline gives

    t = |d| / (s * sqrt(1 / m + 1 / k)),

which is compared with the largest such t that chance would produce among all configurations tried (Dunnett 1955).
With few seeds nu is small and the threshold is high: two seeds say little about the result of a third.

The winner is the best of many configurations. Both corrections therefore count every configuration that was trained,
including those that were stopped early: they could have won as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sweeps import formatting
from sweeps.answering import statistics as resampling
from sweeps.answering import verdict
from sweeps.answering.statistics import LEVEL, Array
from sweeps.answering.verdict import Answer, Comparison, Difference, Row, Verdict
from trainables.metrics.names import METRICS

__all__ = ["Answer", "Comparison", "Difference", "answer"]

MIN_SPREADS = 2.0  # a smaller difference, in seed-to-seed standard deviations, is never claimed


def answer(
    leaderboard: Sequence[Row],
    per_image: Sequence[Row],
    metric: str,
    baseline_ids: Sequence[str],
    direction: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Answer:
    """Compare every finished configuration with the baseline and write the verdict.

    Trials with equal `config/*` values are one configuration trained with several seeds. Only trials that
    finished with as many steps as the baseline are compared. A configuration is "better" or "worse" if

    1. the 95 % interval of its mean difference over images excludes 0,
    2. the corrected p-values over images and over seeds are both below 0.05, and
    3. the difference is more than twice the seed-to-seed standard deviation;

    otherwise it is "not distinguishable". If no configuration has two seeds, all are "not distinguishable". The same
    tables give the same answer: all resampling is seeded.

    Args:
        leaderboard: rows of leaderboard.parquet.
        per_image: rows of per_image.parquet; an image's photograph is the part of its name before "@".
        metric: the objective, e.g. "val/st_lpips".
        baseline_ids: the trials of the baseline, one per seed.
        direction: "max" or "min"; by default the metric's own.
        resamples: number of bootstrap resamples.
        seed: seed of all resampling.

    Raises:
        ValueError: the objective is in no row, or a baseline trial is not in the leaderboard.
    """
    direction = "max" if formatting.is_larger_better(metric, direction) else "min"
    rows = {row["id"]: row for row in leaderboard}
    unknown = [name for name in baseline_ids if name not in rows]
    if unknown:
        raise ValueError(f"baseline trials {unknown} are not in the leaderboard, which has {', '.join(rows)}")
    metrics = sorted({name for row in leaderboard for name in row if name.startswith("val/")})
    if metrics and metric not in metrics:
        raise ValueError(f"objective {metric!r} is in no leaderboard row; there are: {', '.join(metrics)}")

    finished = {name for name, row in rows.items() if row["kind"] == "trial" and row["status"] == "finished"}
    baseline = tuple(name for name in baseline_ids if name in finished)
    named = rows[baseline_ids[0]] if baseline_ids else {}
    result = Answer(
        metric,
        direction,
        baseline,
        baseline_name=named.get("label") or named.get("id") or "the baseline",
        steps=max((rows[name]["steps"] for name in baseline), default=0),
        selected_from=_count_configurations(leaderboard),
    )
    sample = _Sample(rows, per_image, metric, baseline, resamples, seed)
    if not sample.images:
        ranked = sorted(finished, key=lambda name: _rank(rows[name].get(metric), direction))
        result = replace(result, winner_id=ranked[0] if ranked else None)
        result = _controls(result, rows, _Sample(rows, per_image, metric, ranked[:1], resamples, seed), ranked[:1])
        return replace(result, sentences=verdict.sentences(result, rows))
    groups, not_compared = _candidates(result, rows, sample, finished)
    result = _compare(replace(result, not_compared=not_compared), rows, sample, groups)
    result = _winner(result, rows, sample)
    return replace(result, sentences=verdict.sentences(result, rows))


class _Sample:
    """The validation images of the baseline, every row's values on them, and their bootstrap resamples.

    Attributes:
        images: names of the N images; empty if nothing can be compared.
        rng: random generator of all resampling.
    """

    def __init__(
        self,
        rows: Mapping[str, Row],
        per_image: Sequence[Row],
        metric: str,
        baseline: Sequence[str],
        resamples: int,
        seed: int,
    ) -> None:
        self._values: dict[tuple[str, str], dict[str, float]] = {}
        for row in per_image:
            owner = rows.get(row["id"])
            if owner is None or (owner["kind"] == "trial" and owner["steps"] != row["step"]):
                continue  # images of an earlier step than the leaderboard row
            for name, value in row.items():
                if name.startswith("val/") and value is not None and math.isfinite(value):
                    self._values.setdefault((name, row["id"]), {})[row["image"]] = float(value)
        measured = [set(self._values.get((metric, name), {})) for name in baseline]
        self.images = sorted(set.intersection(*measured)) if measured else []
        self.rng = np.random.default_rng(seed)
        self._photographs = [image.split("@")[0] for image in self.images]
        if self.images:
            self._weights = resampling.bootstrap_weights(self._photographs, resamples, self.rng)

    def covers(self, metric: str, *ids: str) -> bool:
        """Whether all of `ids` have a finite value for every image."""
        return all(self._values.get((metric, name), {}).keys() >= set(self.images) for name in ids)

    def mean(self, metric: str, ids: Sequence[str]) -> Array:
        """(N,) values of the images, averaged over the trials `ids`."""
        return np.mean([[self._values[metric, name][image] for image in self.images] for name in ids], axis=0)

    def difference(self, name: str, metric: str, values: Array) -> Difference:
        """The mean of the per-image differences `values` (N,) with its interval."""
        low, high = resampling.interval(self._weights, values)
        images, photographs = len(self.images), len(set(self._photographs))
        return Difference(name, metric, float(values.mean()), float(low), float(high), images, photographs)


def _candidates(
    result: Answer, rows: Mapping[str, Row], sample: _Sample, finished: set[str]
) -> tuple[list[list[str]], dict[str, str]]:
    """Trials to compare, grouped by configuration; and why each other trial is not compared."""
    groups: dict[str, list[str]] = {}
    not_compared: dict[str, str] = {}
    for name, row in rows.items():
        if row["kind"] != "trial" or name in result.baseline_ids:
            continue
        if name not in finished:
            not_compared[name] = row.get("error") or row["status"]
        elif row["steps"] != result.steps:
            not_compared[name] = f"finished after {row['steps']} steps instead of {result.steps}"
        elif not sample.covers(result.metric, name):
            not_compared[name] = f"{result.metric} is missing for some of the {len(sample.images)} images"
        else:
            groups.setdefault(_configuration(row), []).append(name)
    return list(groups.values()), not_compared


def _compare(result: Answer, rows: Mapping[str, Row], sample: _Sample, groups: list[list[str]]) -> Answer:
    """Add the seed-to-seed spread and the comparisons of `groups` with the baseline."""
    metric, baseline = result.metric, list(result.baseline_ids)
    sign = 1.0 if result.direction == "max" else -1.0
    everyone = [*baseline, *itertools.chain(*groups)]
    score = {name: sign * float(sample.mean(metric, [name]).mean()) for name in everyone}
    sd, df = resampling.pooled_sd([[score[name] for name in group] for group in [baseline, *groups]])
    result = replace(result, seed_sd=sd, seed_df=df, baseline_ids=_best_first(baseline, score))
    if not groups:
        return result

    reference = sample.mean(metric, baseline)
    gains = sign * np.stack([sample.mean(metric, group) - reference for group in groups], axis=1)
    family = max(result.selected_from - 1, len(groups))
    p_images = resampling.holm(resampling.sign_flip_p(gains, sample.rng), family)
    p_seeds = np.ones(len(groups))
    if df:
        seeds = [len(group) for group in groups]
        error = sd * np.sqrt(1 / np.asarray(seeds) + 1 / len(baseline))
        t = np.abs(gains.mean(axis=0)) / np.maximum(error, np.finfo(float).tiny)
        stopped = [1] * (family - len(groups))
        p_seeds = resampling.dunnett_p(t, seeds + stopped, len(baseline), df, sample.rng)

    varied = formatting.varied_settings(list(rows.values()))
    comparisons = []
    for column, group in enumerate(groups):
        ids = _best_first(group, score)
        gain = sample.difference(formatting.trial_text(rows[ids[0]], varied), metric, gains[:, column])
        p = float(p_images[column]), float(p_seeds[column])
        comparisons.append(Comparison(ids, gain, *p, *_judge(gain, *p, sd)))
    comparisons.sort(key=lambda comparison: -comparison.gain.mean)
    return replace(result, comparisons=tuple(comparisons))


def _judge(gain: Difference, p_images: float, p_seeds: float, sd: float) -> tuple[Verdict, str]:
    """The verdict, and the reason if it is "not distinguishable"."""
    if math.isnan(sd):
        return (
            "not distinguishable",
            "no configuration was trained with two seeds",
        )
    reasons = []
    if gain.low <= 0 <= gain.high:
        reasons.append("the interval contains 0")
    elif p_images >= LEVEL:
        reasons.append("the images are too few or disagree too much to rule out chance")
    if abs(gain.mean) <= MIN_SPREADS * sd:
        reasons.append("the difference is within twice the seed-to-seed spread")
    elif p_seeds >= LEVEL:
        reasons.append("the seeds are too few or differ too much to rule out chance")
    if reasons:
        return "not distinguishable", " and ".join(reasons)
    return ("better" if gain.mean > 0 else "worse"), ""


def _winner(result: Answer, rows: Mapping[str, Row], sample: _Sample) -> Answer:
    """Add the winner, the change of its other metrics from the baseline, and its comparison with the controls."""
    metric, baseline = result.metric, result.baseline_ids
    leads = bool(result.comparisons) and result.comparisons[0].gain.mean > 0
    winner = result.comparisons[0].ids if leads else baseline
    names = {name for row in rows.values() for name in row if name.startswith("val/")}
    secondary = [
        sample.difference(formatting.metric_title(other), other, change)
        for other in sorted(names - {metric})
        if leads and sample.covers(other, *winner, *baseline)
        for change in [sample.mean(other, winner) - sample.mean(other, baseline)]
    ]
    result = replace(result, winner_id=winner[0], secondary=tuple(secondary))
    return _controls(result, rows, sample, winner)


def _controls(result: Answer, rows: Mapping[str, Row], sample: _Sample, winner: Sequence[str]) -> Answer:
    """Compare the winner with every control over the same images. This says nothing about other seeds."""
    if not sample.images:
        return result
    others = {metric: formatting.is_larger_better(metric) for metric in METRICS if metric != result.metric}
    directions = {result.metric: result.direction == "max", **others}
    gains = {
        (name, metric): (1.0 if larger else -1.0) * (sample.mean(metric, winner) - sample.mean(metric, [name]))
        for name, row in rows.items()
        for metric, larger in directions.items()
        if row["kind"] == "control" and sample.covers(metric, name, *winner)
    }
    controls = [sample.difference(*key, gain) for key, gain in gains.items() if key[1] == result.metric]
    leads = {key: -gain for key, gain in gains.items() if key[0] != verdict.CEILING}
    ahead = []
    if leads:
        p = resampling.holm(resampling.sign_flip_p(np.stack([*leads.values()], axis=1), sample.rng), len(leads))
        found = [sample.difference(*key, lead) for key, lead in leads.items()]
        ahead = [lead for lead, luck in zip(found, p, strict=True) if lead.low > 0 and luck < LEVEL]
    return replace(result, controls=tuple(controls), ahead=tuple(ahead))


def _best_first(ids: Sequence[str], score: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(sorted(ids, key=lambda name: -score[name]))


def _configuration(row: Row) -> str:
    return repr(sorted(formatting.settings_of(row).items()))


def _count_configurations(leaderboard: Sequence[Row]) -> int:
    raced = ("finished", "stopped", "interrupted")
    trials = [row for row in leaderboard if row["kind"] == "trial" and row["status"] in raced]
    return len({_configuration(row) for row in trials})


def _rank(value: float | None, direction: str) -> float:
    """Sort key: the best value first, a missing one last."""
    if value is None or math.isnan(value):
        return math.inf
    return -value if direction == "max" else value
