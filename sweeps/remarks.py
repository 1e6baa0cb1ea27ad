"""What an answer says beside the comparison: targets that were set, and what longer training brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces import Criterion
from sweeps.formatting import is_larger_better, metric_text, metric_title, metric_unit

Row = Mapping[str, Any]

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
