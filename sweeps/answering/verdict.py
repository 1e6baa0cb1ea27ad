"""What a sweep found out: the numbers of an answer, and the sentences that say them."""

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
CEILING = "autoencoder"  # it is given the target: nothing is expected to reach it
SAME_COST = (0.9, 1.1)  # ratios of step times that are not worth a sentence


@dataclass(frozen=True)
class Difference:
    """A mean difference over the same images, with its 95 % bootstrap interval.

    Attributes:
        name: what is compared, as a person would write it. metric: full name of the metric. mean, low, high:
        in the metric's own units; which sign is the better one, the field that holds it says. images,
        photographs: how many it was measured on.
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
    """One configuration against the baseline, at the same number of steps.

    Attributes:
        ids: its trials, one a seed, the best first.
        gain: difference to the baseline in the objective, positive where the configuration is better.
        p_images: sign-flip p-value over images, Holm-corrected.
        p_seeds: Dunnett p-value against the spread between seeds; 1 where no spread is known.
        verdict: what can be said.
        reason: what keeps more from being said; empty for a clear verdict.
    """

    ids: tuple[str, ...]
    gain: Difference
    p_images: float
    p_seeds: float
    verdict: Verdict
    reason: str

    @property
    def p(self) -> float:
        """The larger one of the two corrected p-values: both kinds of luck must be unlikely."""
        return max(self.p_images, self.p_seeds)


@dataclass(frozen=True)
class Answer:
    """What a sweep found out.

    Attributes:
        metric, direction: the objective.
        baseline_ids: the baseline's finished trials, one a seed; empty if none finished.
        baseline_name: how the baseline is called in sentences.
        winner_id: the best trial of the best configuration, which may be the baseline; None if none finished.
        steps: training steps after which everything is compared.
        seed_sd: standard deviation of the objective between seeds, NaN if no configuration has two.
        seed_df: its degrees of freedom.
        selected_from: number of configurations the winner was selected from, the baseline among them.
        comparisons: every finished configuration against the baseline, the best first.
        secondary: change of the other metrics from the baseline to the winner; positive means a larger value.
        controls: gain of the winner over each control in the objective, positive where the winner is better.
        ahead: by how much a control is better than the winner, for every control but the ceiling and every metric
            where the interval and the p-value over images, corrected for all of these, leave no doubt of it.
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
        """The first sentence."""
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
        texts.append(f"What it changes in the other metrics: {changes}.")
    texts += _about_controls(answer)
    texts += _about_the_cost(answer, rows)
    if len(answer.comparisons) > 1:
        counts = {word: sum(c.verdict == word for c in answer.comparisons) for word in get_args(Verdict)}
        parts = ", ".join(f"{count} {word}" for word, count in counts.items())
        texts.append(f"All {len(answer.comparisons)} finished configurations against {answer.baseline_name}: {parts}.")
    texts += _about_the_rest(answer, rows)
    photographs = answer.comparisons[0].gain.photographs
    if photographs < FEW_PHOTOGRAPHS:
        rest = formatting.count_text(photographs, "photograph")
        texts.append(f"The intervals rest on {rest} and are rough; other photographs may say otherwise.")
    return tuple(texts)


def _about_the_first(answer: Answer) -> str:
    """The best configuration other than the baseline: by how much, on what ground, with which conclusion."""
    first, base = answer.comparisons[0], answer.baseline_name
    amount = formatting.metric_text(answer.metric, abs(first.gain.mean)) + formatting.metric_unit(answer.metric)
    amount = f"{amount} {formatting.metric_title(answer.metric)}"
    if math.isnan(answer.seed_sd):
        spread = "seed-to-seed spread unknown"
    else:
        seeds = formatting.count_text(answer.seed_df, "degree of freedom", "degrees of freedom")
        spread = f"seed-to-seed sd {formatting.metric_text(answer.metric, answer.seed_sd)} on {seeds}"
    images = formatting.count_text(first.gain.images, "image")
    photographs = formatting.count_text(first.gain.photographs, "photograph")
    ground = (
        f"95 % interval {_interval_text(first.gain)} over {images} of {photographs}; {spread}; "
        f"best of {answer.selected_from} configurations, corrected p = {first.p:.2g}"
    )
    if answer.winner_id in answer.baseline_ids:
        found = f"Nothing beat {base}; the next best, {first.gain.name}, is behind it by {amount}"
        ground = f"gain {formatting.metric_text(answer.metric, first.gain.mean, sign=True)}, {ground}"
    elif first.verdict == "better":
        found = f"{first.gain.name} is better than {base} by {amount}"
    else:
        found = f"{first.gain.name} is ahead of {base} by {amount}"
    clear = f"not distinguishable from {base}: {first.reason}" if first.reason else "distinguishable"
    return f"{found} ({ground}): {clear}."


def _without_comparison(answer: Answer, rows: Mapping[str, Row]) -> str:
    if answer.winner_id is None:
        return "No trial finished, so there is no answer."
    row = rows[answer.winner_id]
    value = formatting.metric_text(answer.metric, row.get(answer.metric)) + formatting.metric_unit(answer.metric)
    varied = formatting.varied_settings(list(rows.values()))
    found = f"{formatting.trial_text(row, varied)} reached {formatting.metric_title(answer.metric)} {value}"
    if not answer.baseline_ids:
        return f"{found}; {answer.baseline_name} did not finish, so there is nothing to compare it with."
    return f"{found}; no other configuration can be compared with {answer.baseline_name}."


def _behind_untrained(answer: Answer) -> list[str]:
    """That the winner is worth less than what needs no training, where it is."""
    doubtless = {(lead.name, lead.metric) for lead in answer.ahead}
    texts = []
    for gain in answer.controls:
        if gain.name == UNTRAINED and gain.mean < 0:
            amount = formatting.metric_text(gain.metric, -gain.mean) + formatting.metric_unit(gain.metric)
            interval = _interval_text(replace(gain, low=-gain.high, high=-gain.low))
            doubt = "" if (gain.name, gain.metric) in doubtless else ", which may be luck"
            texts.append(
                f"The winner is behind {gain.name}, which trains nothing, in the objective itself: by {amount} "
                f"{formatting.metric_title(gain.metric)} (95 % interval {interval}){doubt}."
            )
    return texts


def _about_controls(answer: Answer) -> list[str]:
    """Which controls are ahead of the winner, and in what, in one sentence; without what `_behind_untrained` says."""
    leads: dict[str, list[str]] = {}
    for lead in answer.ahead:
        if (lead.name, lead.metric) != (UNTRAINED, answer.metric):
            amount = formatting.metric_text(lead.metric, lead.mean) + formatting.metric_unit(lead.metric)
            interval = f"{'' if leads else '95 % interval '}{_interval_text(lead)}"
            leads.setdefault(lead.name, []).append(f"{formatting.metric_title(lead.metric)} by {amount} ({interval})")
    texts = [f"{name} is ahead of the winner in {', '.join(parts)}" for name, parts in leads.items()]
    return ["; ".join(texts) + "."] if texts else []


def _about_the_cost(answer: Answer, rows: Mapping[str, Row]) -> list[str]:
    """What a step of the best configuration other than the baseline costs beside the baseline's.

    Nothing where every step is as long, or where trials of the same settings differ so much that it cannot be told:
    each trial of the one must be slower than each of the other.
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
        f"A step of {name} takes {its / base:.2f} times as long as the baseline's "
        f"({formatting.milliseconds_text(its)} against {formatting.milliseconds_text(base)} ms; "
        "rough where trials ran beside others)."
    ]


def _about_the_rest(answer: Answer, rows: Mapping[str, Row]) -> list[str]:
    """What became of the trials that did not finish."""
    texts = []
    ended = [row["status"] for row in rows.values() if row["kind"] == "trial"]
    if stopped := ended.count("stopped"):
        texts.append(
            f"{formatting.count_text(stopped, 'trial')} stopped early by ASHA: behind others after as many "
            "steps, so not worth more; that is no comparison at full length."
        )
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


SHORT = 0.2  # share of the training that the whole is compared with, as 5,000 steps of 25,000


def criteria_met(
    criteria: Sequence[Criterion], rows: Sequence[Row], baseline_ids: Sequence[str], winner_id: str | None
) -> list[str]:
    """A sentence for every criterion: the winner against the target, beside what was reached elsewhere and what the
    baseline reached here."""
    return [_criterion(criterion, rows, baseline_ids, winner_id) for criterion in criteria]


def _criterion(criterion: Criterion, rows: Sequence[Row], baseline_ids: Sequence[str], winner_id: str | None) -> str:
    metric, unit = criterion.metric, metric_unit(criterion.metric)
    larger = is_larger_better(metric)
    target = f"{metric_title(metric)} {'≥' if larger else '≤'} {metric_text(metric, criterion.target)}{unit}"
    elsewhere = f"elsewhere {metric_text(metric, criterion.reference)}{unit} was reached on other data"
    values = {row["id"]: row[metric] for row in rows if row.get(metric) is not None}
    if winner_id not in values:
        return f"Target {target}: not measured here; {elsewhere}."
    value = values[winner_id]
    met = value >= criterion.target if larger else value <= criterion.target
    baseline = [values[id] for id in baseline_ids if id in values]
    here = f", the baseline {metric_text(metric, sum(baseline) / len(baseline))}{unit}" if baseline else ""
    verdict = "met" if met else "not met"
    return f"Target {target}: {verdict}, the winner has {metric_text(metric, value)}{unit}{here}; {elsewhere}."


def longer_training(history: Sequence[Row], baseline_ids: Sequence[str], metric: str) -> list[str]:
    """What the baseline had at a fifth of its steps and at the end, from the history of the same runs: no shorter ones
    are needed. A learning rate that decays over the whole run favours its end. Empty where there are no two reports to
    compare."""
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
    stood = [f"{metric_text(metric, value)}{metric_unit(metric)} at step {step}" for step, value in at.items()]
    told = f"{', '.join(stood[:-1])} and {stood[-1]}"
    return [f"In the history of the baseline, {metric_title(metric)} was {told}."]
