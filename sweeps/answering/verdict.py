"""The answer of a sweep: its numbers, and the sentences that report them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from search_spaces import Criterion
from sweeps import formatting
from sweeps.formatting import Row, is_larger_better, metric_text, metric_title, metric_unit

Verdict = Literal["better", "worse", "not distinguishable"]

FEW_PHOTOGRAPHS = 10
UNTRAINED = "bicubic"
CEILING = "autoencoder"  # it reconstructs the target: an upper bound, so it is not reported as ahead
SAME_COST = (0.9, 1.1)  # ratios of step times in this range are not reported


@dataclass(frozen=True)
class Difference:
    """A mean difference over the same images, with its 95 % bootstrap interval.

    Attributes:
        name: the compared configuration, metric or control, as shown to readers.
        metric: full name of the metric.
        mean, low, high: in the metric's units. The field that holds the difference says which sign is better.
        images, photographs: how many it was measured on.
    """

    name: str
    metric: str
    mean: float
    low: float
    high: float
    images: int
    photographs: int


@dataclass(frozen=True)
class Comparison:
    """One configuration compared with the baseline, at the same number of steps.

    Attributes:
        ids: its trials, one per seed, best first.
        gain: difference from the baseline in the objective; positive means the configuration is better.
        p_images: sign-flip p-value over images, Holm-corrected.
        p_seeds: Dunnett p-value over seeds; 1 if the seed-to-seed spread is unknown.
        verdict: better, worse or not distinguishable.
        reason: why the verdict is "not distinguishable"; else empty.
    """

    ids: tuple[str, ...]
    gain: Difference
    p_images: float
    p_seeds: float
    verdict: Verdict
    reason: str

    @property
    def p(self) -> float:
        """The larger of the two corrected p-values: chance over images and over seeds must both be unlikely."""
        return max(self.p_images, self.p_seeds)


@dataclass(frozen=True)
class Answer:
    """The answer of a sweep.

    Attributes:
        metric, direction: the objective.
        baseline_ids: the baseline's finished trials, one per seed; empty if none finished.
        baseline_name: name of the baseline in sentences.
        winner_id: the best trial of the best configuration, which may be the baseline; None if no trial finished.
        steps: number of training steps at which configurations are compared.
        seed_sd: standard deviation of the objective between seeds; NaN if no configuration has two seeds.
        seed_df: its degrees of freedom.
        selected_from: number of configurations the winner was selected from, including the baseline.
        comparisons: every finished configuration compared with the baseline, best first.
        secondary: change of the other metrics from the baseline to the winner; positive means a larger value.
        controls: gain of the winner over each control in the objective; positive means the winner is better.
        ahead: leads of controls over the winner, in any metric; without the ceiling. A lead is listed only if its
            interval excludes 0 and its p-value over images, corrected for all of these tests, is below 0.05.
        not_compared: trial id -> why it is not in `comparisons`.
        sentences: the answer in plain English, the verdict first.
    """

    metric: str
    direction: str
    baseline_ids: tuple[str, ...] = ()
    baseline_name: str = ""
    winner_id: str | None = None
    steps: int = 0
    seed_sd: float = math.nan
    seed_df: int = 0
    selected_from: int = 0
    comparisons: tuple[Comparison, ...] = ()
    secondary: tuple[Difference, ...] = ()
    controls: tuple[Difference, ...] = ()
    ahead: tuple[Difference, ...] = ()
    not_compared: Mapping[str, str] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The first entry of `sentences`: the verdict and its numbers."""
        return self.sentences[0]


def sentences(answer: Answer, rows: Mapping[str, Row]) -> tuple[str, ...]:
    """The answer in plain English, the verdict first.

    Args:
        rows: leaderboard rows by id.
    """
    if not answer.comparisons:
        found = _without_comparison(answer, rows)
        return (found, *_behind_untrained(answer), *_about_controls(answer), *_about_the_rest(answer, rows))
    texts = [_about_the_first(answer), *_behind_untrained(answer)]
    if answer.secondary:
        changes = "; ".join(_change_text(change) for change in answer.secondary)
        texts.append(f"Other metrics: {changes}.")
    texts += _about_controls(answer)
    texts += _about_the_cost(answer, rows)
    if len(answer.comparisons) > 1:
        counts = {word: sum(c.verdict == word for c in answer.comparisons) for word in get_args(Verdict)}
        parts = ", ".join(f"{count} {word}" for word, count in counts.items())
        compared = f"{len(answer.comparisons)} finished configurations compared with {answer.baseline_name}"
        texts.append(f"{compared}: {parts}.")
    texts += _about_the_rest(answer, rows)
    photographs = answer.comparisons[0].gain.photographs
    if photographs < FEW_PHOTOGRAPHS:
        rest = formatting.count_text(photographs, "photograph")
        texts.append(f"The intervals come from {rest} and are rough; other photographs may give another answer.")
    return tuple(texts)


def _about_the_first(answer: Answer) -> str:
    """The verdict on the best configuration other than the baseline, then its numbers."""
    first, base = answer.comparisons[0], answer.baseline_name
    amount = formatting.metric_text(answer.metric, abs(first.gain.mean)) + formatting.metric_unit(answer.metric)
    amount = f"{amount} {formatting.metric_title(answer.metric)}"
    if math.isnan(answer.seed_sd):
        spread = "the seed-to-seed spread is unknown"
    else:
        seeds = formatting.count_text(answer.seed_df, "degree of freedom", "degrees of freedom")
        spread = f"the seed-to-seed sd is {formatting.metric_text(answer.metric, answer.seed_sd)} ({seeds})"
    images = formatting.count_text(first.gain.images, "image")
    photographs = formatting.count_text(first.gain.photographs, "photograph")
    numbers = (
        f"interval is {_interval_text(first.gain)} over {images} of {photographs}; {spread}; "
        f"best of {answer.selected_from} configurations, corrected p = {first.p:.2g}"
    )
    doubt = f", but not distinguishable from it because {first.reason}" if first.reason else ""
    if answer.winner_id in answer.baseline_ids:
        behind = "worse" if first.verdict == "worse" else "behind"
        found = f"Nothing beat {base}; the next best, {first.gain.name}, is {behind} by {amount}"
        gain = formatting.metric_text(answer.metric, first.gain.mean, sign=True)
        return f"{found}{doubt}. The gain is {gain}; its 95 % {numbers}."
    lead = "better than" if first.verdict == "better" else "ahead of"
    return f"{first.gain.name} is {lead} {base} by {amount}{doubt}. The 95 % {numbers}."


def _without_comparison(answer: Answer, rows: Mapping[str, Row]) -> str:
    if answer.winner_id is None:
        return "No trial finished, so there is no answer."
    row = rows[answer.winner_id]
    value = formatting.metric_text(answer.metric, row.get(answer.metric)) + formatting.metric_unit(answer.metric)
    varied = formatting.varied_settings(list(rows.values()))
    found = f"{formatting.trial_text(row, varied)} reached {formatting.metric_title(answer.metric)} {value}"
    if not answer.baseline_ids:
        return f"{found}; {answer.baseline_name} did not finish, so nothing can be compared with it."
    return f"{found}; no other configuration can be compared with {answer.baseline_name}."


def _behind_untrained(answer: Answer) -> list[str]:
    """A sentence if the winner is behind untrained bicubic in the objective."""
    doubtless = {(lead.name, lead.metric) for lead in answer.ahead}
    texts = []
    for gain in answer.controls:
        if gain.name == UNTRAINED and gain.mean < 0:
            amount = formatting.metric_text(gain.metric, -gain.mean) + formatting.metric_unit(gain.metric)
            interval = _interval_text(replace(gain, low=-gain.high, high=-gain.low))
            doubt = "" if (gain.name, gain.metric) in doubtless else "; this may be chance"
            texts.append(
                f"The winner is behind untrained {gain.name} in the objective, by {amount} "
                f"{formatting.metric_title(gain.metric)} (95 % interval {interval}){doubt}."
            )
    return texts


def _about_controls(answer: Answer) -> list[str]:
    """One sentence: which controls are ahead of the winner, in which metrics; `_behind_untrained` has its own."""
    leads: dict[str, list[str]] = {}
    for lead in answer.ahead:
        if (lead.name, lead.metric) != (UNTRAINED, answer.metric):
            amount = formatting.metric_text(lead.metric, lead.mean) + formatting.metric_unit(lead.metric)
            interval = f"{'' if leads else '95 % interval '}{_interval_text(lead)}"
            leads.setdefault(lead.name, []).append(f"{formatting.metric_title(lead.metric)} by {amount} ({interval})")
    texts = [f"{name} is ahead of the winner in {', '.join(parts)}" for name, parts in leads.items()]
    return ["; ".join(texts) + "."] if texts else []


def _about_the_cost(answer: Answer, rows: Mapping[str, Row]) -> list[str]:
    """The step time of the best configuration other than the baseline, relative to the baseline's step time.

    Empty if the two are about equal, or if trials of the same settings differ too much: all trials of one side must be
    slower than all trials of the other.
    """
    first = answer.comparisons[0]
    groups = [[formatting.step_seconds(rows[id]) for id in ids] for ids in (first.ids, answer.baseline_ids)]
    ours, theirs = ([seconds for seconds in group if seconds is not None] for group in groups)
    if not ours or not theirs or (min(ours) <= max(theirs) and min(theirs) <= max(ours)):
        return []
    its, base = statistics.median(ours), statistics.median(theirs)
    if SAME_COST[0] <= its / base <= SAME_COST[1]:
        return []
    name = "the winner" if answer.winner_id in first.ids else f"the next best, {first.gain.name},"
    return [
        f"A step of {name} takes {its / base:.2f} times as long as a step of the baseline "
        f"({formatting.milliseconds_text(its)} and {formatting.milliseconds_text(base)} ms; "
        "approximate if trials ran in parallel)."
    ]


def _about_the_rest(answer: Answer, rows: Mapping[str, Row]) -> list[str]:
    """How many trials did not finish, and why."""
    texts = []
    ended = [row["status"] for row in rows.values() if row["kind"] == "trial"]
    if stopped := ended.count("stopped"):
        texts.append(f"{formatting.count_text(stopped, 'trial')} stopped early by ASHA; not compared at full length.")
    for status in ("failed", "interrupted"):
        if count := ended.count(status):
            texts.append(f"{formatting.count_text(count, 'trial')} {status}.")
    return texts


def _change_text(change: Difference) -> str:
    mean = formatting.metric_text(change.metric, change.mean, sign=True) + formatting.metric_unit(change.metric)
    return f"{change.name} {mean} (95 % interval {_interval_text(change)})"


def _interval_text(difference: Difference) -> str:
    low, high = (formatting.metric_text(difference.metric, value) for value in (difference.low, difference.high))
    return f"{low}..{high}"


SHORT = 0.2  # share of the steps to compare with the end, e.g. 5,000 steps of 25,000


def criteria_met(
    criteria: Sequence[Criterion], rows: Sequence[Row], baseline_ids: Sequence[str], winner_id: str | None
) -> list[str]:
    """A sentence for every criterion: the winner's value, the target, the baseline's value and the reference value."""
    return [_criterion(criterion, rows, baseline_ids, winner_id) for criterion in criteria]


def _criterion(criterion: Criterion, rows: Sequence[Row], baseline_ids: Sequence[str], winner_id: str | None) -> str:
    metric, unit = criterion.metric, metric_unit(criterion.metric)
    larger = is_larger_better(metric)
    target = f"{metric_title(metric)} {'≥' if larger else '≤'} {metric_text(metric, criterion.target)}{unit}"
    reference = f"the reference on other data is {metric_text(metric, criterion.reference)}{unit}"
    values = {row["id"]: row[metric] for row in rows if row.get(metric) is not None}
    if winner_id not in values:
        return f"Target {target}: not measured; {reference}."
    value = values[winner_id]
    met = value >= criterion.target if larger else value <= criterion.target
    baseline = [values[id] for id in baseline_ids if id in values]
    here = f" and the baseline {metric_text(metric, sum(baseline) / len(baseline))}{unit}" if baseline else ""
    verdict = "met" if met else "not met"
    return f"Target {target}: {verdict}. The winner has {metric_text(metric, value)}{unit}{here}; {reference}."


def longer_training(history: Sequence[Row], baseline_ids: Sequence[str], metric: str) -> list[str]:
    """A sentence with the baseline's objective at a fifth of its steps, one report before the end, and at the end.

    The values come from the same runs, not from shorter ones: a learning rate that decays over the whole run favours
    its end. Empty if there are fewer than two reports.
    """
    runs = [
        {row["step"]: row[metric] for row in history if row["id"] == id and row.get(metric) is not None}
        for id in baseline_ids
    ]
    runs = [run for run in runs if run]
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if len(steps) < 2:
        return []
    last = steps[-1]
    short = min(steps[:-1], key=lambda step: abs(step - SHORT * last))
    at = {step: sum(run[step] for run in runs) / len(runs) for step in (short, steps[-2], last)}
    values = [f"{metric_text(metric, value)}{metric_unit(metric)} at step {step}" for step, value in at.items()]
    return [f"The baseline's {metric_title(metric)} during training was {', '.join(values[:-1])} and {values[-1]}."]
