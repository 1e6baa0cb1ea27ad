"""Remarks under an answer: cost of a step, where trials began, the edge of the space, targets, trials that ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from search_spaces import Criterion, Distribution, Float, Int
from sweeps import formatting
from sweeps.formatting import Row, is_larger_better, metric_text, metric_title, metric_unit, setting_text
from sweeps.recording.columns import WEIGHTED
from sweeps.recording.tables import OUT_OF_TIME
from sweeps.trial_config import CONFIRMATION
from trainables.settings import TrainingSettings
from trainables.settings.roles import ROLES

SAME_COST = (0.9, 1.1)  # ratios of step times in this range are not reported
SHORT = 0.2  # share of the steps to compare with the end, e.g. 5,000 steps of 25,000
EDGE = 0.02  # share of a parameter's range, on its own scale, that counts as its edge


def cost_of_a_step(
    rows: Mapping[str, Row], winner: str, winner_ids: Sequence[str], baseline_ids: Sequence[str]
) -> list[str]:
    """The step time of the winner, relative to the baseline's: medians of all finished trials of each, of the search
    and of the confirmation.

    Empty if the two are about equal, or if trials of the same settings differ too much: all trials of one side must be
    slower than all trials of the other.
    """
    if not winner_ids or set(winner_ids) & set(baseline_ids):
        return []
    of_winner = formatting.finished_like(rows.values(), formatting.configuration_of(rows[winner_ids[0]]))
    groups = [[formatting.step_seconds(rows[id]) for id in ids] for ids in (of_winner, baseline_ids)]
    ours, theirs = ([seconds for seconds in group if seconds is not None] for group in groups)
    if not ours or not theirs or (min(ours) <= max(theirs) and min(theirs) <= max(ours)):
        return []
    its, base = statistics.median(ours), statistics.median(theirs)
    if SAME_COST[0] <= its / base <= SAME_COST[1]:
        return []
    return [
        f"A step of {winner} takes {its / base:.2f} times as long as a step of the baseline "
        f"({formatting.milliseconds_text(its)} and {formatting.milliseconds_text(base)} ms, "
        f"medians of {len(ours)} and {formatting.count_text(len(theirs), 'trial')})."
    ]


def ends_of_trials(rows: Sequence[Row]) -> list[str]:
    """How many trials did not finish, and why."""
    texts = []
    trials = [row for row in rows if row["kind"] != "control"]
    ended = [row["status"] for row in trials]
    late = sum(row["status"] == "stopped" and bool(row.get(OUT_OF_TIME)) for row in trials)
    if stopped := ended.count("stopped") - late:
        texts.append(f"{formatting.count_text(stopped, 'trial')} stopped early by ASHA; not compared at full length.")
    if late:
        texts.append(
            f"{formatting.count_text(late, 'trial')} stopped because the time budget was over; not compared at full "
            "length. With more time (--resume RUN --time-budget TIME), the run continues them."
        )
    for status in ("failed", "interrupted"):
        if count := ended.count(status):
            texts.append(f"{formatting.count_text(count, 'trial')} {status}.")
    return texts


def worse_than_the_start(history: Sequence[Row], ids: Sequence[str], metric: str, name: str) -> list[str]:
    """A sentence if training made a configuration worse than what it started from, in all of its trials.

    Args:
        ids: its trials. Those that start from random weights have no report at step 0.
        name: of the configuration, for readers.
    """
    larger = is_larger_better(metric)
    begun, ended = [], []
    for id in ids:
        reports = {row["step"]: row[metric] for row in history if row["id"] == id and row.get(metric) is not None}
        if 0 in reports and max(reports) > 0:
            begun.append(reports[0])
            ended.append(reports[max(reports)])
    if not begun or not all(end < start if larger else end > start for start, end in zip(begun, ended, strict=True)):
        return []
    start, end = (metric_text(metric, statistics.fmean(values)) for values in (begun, ended))
    return [
        f"Training made {name} worse than what it started from: {metric_title(metric)} {start}{metric_unit(metric)} at "
        f"step 0 and {end}{metric_unit(metric)} at the end, on the validation photographs."
    ]


def best_at_the_start(rows: Sequence[Row], name: str) -> list[str]:
    """A sentence if no step of a configuration was better than what it started from, in all of its trials, which keep
    their best step.

    Args:
        rows: its trials. name: of the configuration, for readers.
    """
    if not rows or any(row.get("best_step") != 0 for row in rows):
        return []
    return [f"No step of {name} was better than what it started from, on the validation photographs: it kept step 0."]


def at_the_edge(distributions: Mapping[str, Distribution], row: Row, name: str) -> list[str]:
    """A sentence if a configuration lies at the edge of the space: a wider range may hold a better one.

    Args:
        distributions: dotted name -> distribution, of the space's parameters. Choices have no edge.
        row: of a trial of the configuration. name: of the configuration, for readers.
    """
    found = []
    for setting, among in distributions.items():
        value = row.get(formatting.CONFIG + setting)
        if not isinstance(among, Float | Int) or not isinstance(value, int | float) or among.low == among.high:
            continue
        limits = ROLES[setting].within if setting in ROLES else None
        if limits is not None and value in tuple(limits)[:2]:
            continue  # no value beyond it is accepted
        low, high, at = (math.log(v) if among.log else float(v) for v in (among.low, among.high, value))
        if not EDGE <= (at - low) / (high - low) <= 1 - EDGE:
            found.append(f"{setting} {setting_text(value)} of {among}")
    said = f"{name} lies at the edge of the space, so a better one may lie outside"
    return [f"{said}: {'; '.join(found)}."] if found else []


def criteria_met(
    criteria: Sequence[Criterion], rows: Sequence[Row], baseline_ids: Sequence[str], winner_id: str | None, winner: str
) -> list[str]:
    """A sentence for every criterion: the winner's value, the target, the baseline's value and the reference value."""
    return [_criterion(criterion, rows, baseline_ids, winner_id, winner) for criterion in criteria]


def _criterion(
    criterion: Criterion, rows: Sequence[Row], baseline_ids: Sequence[str], winner_id: str | None, winner: str
) -> str:
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
    compared = baseline and winner_id not in baseline_ids
    here = f", the baseline {metric_text(metric, sum(baseline) / len(baseline))}{unit} in the mean" if compared else ""
    verdict, shown = "met" if met else "not met", f"{metric_text(metric, value)}{unit}"
    kept = f"On the validation photographs the kept trial of {winner} has {shown}{here}"
    return f"Target {target}: {verdict}. {kept}; {reference}."


def seeds_without_effect(rows: Sequence[Row], metric: str) -> list[str]:
    """A sentence if the seeds of each confirmed configuration gave one result: then nothing random is in these trials.

    Args:
        rows: of all trials. metric: of the test photographs.
    """
    results: dict[str, list[float | None]] = {}
    for row in rows:
        if row["kind"] == CONFIRMATION and row["status"] == "finished":
            results.setdefault(formatting.configuration_of(row), []).append(row.get(metric))
    if not results or any(len(of_one) < 2 or len(set(of_one)) > 1 for of_one in results.values()):
        return []
    return ["A seed changes nothing here, so the intervals cover only the variation between photographs."]


def shares_of_the_loss(history: Sequence[Row], baseline_ids: Sequence[str], name: str) -> list[str]:
    """A sentence with each term's share of the baseline's loss, weights included, in the last reports of its trials.

    Empty with fewer than two terms, or if an adversary trains too: its loss is not a part of the same sum.
    """
    last = {row["id"]: row for row in sorted(history, key=lambda row: row["step"]) if row["id"] in baseline_ids}
    sums: dict[str, float] = {}
    for row in last.values():
        for term, value in row.items():
            if term.startswith(WEIGHTED) and value is not None and math.isfinite(value):
                sums[term] = sums.get(term, 0.0) + abs(value)
    terms = {term.removeprefix(WEIGHTED): value for term, value in sums.items()}
    whole = sum(terms.values())
    if len(terms) < 2 or not whole or {"discriminator", "score"} & terms.keys():
        return []
    ranked = sorted(terms, key=lambda term: terms[term], reverse=True)
    shares = {term: 100 * terms[term] / whole for term in ranked}
    texts = [f"{term} {f'{share:.0f}' if share >= 1 else 'under 1'} %" for term, share in shares.items()]
    return [f"Shares of {name}'s loss at the end, weights included: {', '.join(texts)}."]


def longer_training(
    history: Sequence[Row], baseline_ids: Sequence[str], metric: str, training: TrainingSettings
) -> list[str]:
    """A sentence with the baseline's objective at a fifth of its steps, one report before the end, and at the end; and
    one that says what a decay of its learning rate means for them.

    The values come from the same runs, not from shorter ones. A shorter run with a decay would have ended it by then;
    only with a constant rate is the start of a long run a short run. Empty if there are fewer than two reports.

    Args:
        training: of the baseline; its shares of the steps count from the last step of these runs.
    """
    runs = [
        {row["step"]: row[metric] for row in history if row["id"] == id and row.get(metric) is not None}
        for id in baseline_ids
    ]
    runs = [run for run in runs if run]
    steps = sorted(set.intersection(*(set(run) for run in runs)) - {0}) if runs else []
    if len(steps) < 2:
        return []
    last = steps[-1]
    short = min(steps[:-1], key=lambda step: abs(step - SHORT * last))
    at = {step: sum(run[step] for run in runs) / len(runs) for step in (short, steps[-2], last)}
    values = [f"{metric_text(metric, value)}{metric_unit(metric)} at step {step}" for step, value in at.items()]
    of = f", mean of {len(runs)} trials," if len(runs) > 1 else ""
    said = f"The baseline's {metric_title(metric)} on the validation photographs{of} was"
    begins = replace(training, max_steps=last).decay_begins
    return [f"{said} {', '.join(values[:-1])} and {values[-1]}.", *_decay(begins, short, last)]


def _decay(begins: float, short: int, last: int) -> list[str]:
    """What a decay means for a comparison of lengths. begins: its first step, `last` or more if there is none."""
    if begins >= last:
        return []
    if begins < short:
        return [
            f"Its learning rate decays from step {begins:.0f} on, so a run that ends at step {short} would be "
            f"another training: the value at step {short} is not its result."
        ]
    return [
        f"The value at step {short} is not the result of a run of {short} steps: such a run would have lowered its "
        f"learning rate by then; this one keeps it constant until step {begins:.0f}."
    ]
