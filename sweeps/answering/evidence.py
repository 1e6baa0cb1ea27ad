"""The evidence under an answer: intervals, drawn and as numbers, and means of winner, baseline and controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import replace

from sweeps import formatting
from sweeps.answering.comparison import first_trials
from sweeps.answering.intervals import Finding
from sweeps.answering.markup import UPPER_BOUND, Colour, Span, intervals, note, table
from sweeps.answering.verdict import CEILING, UNTRAINED, Answer
from sweeps.answering.view import View, number
from sweeps.formatting import Row, metric_text, metric_title, metric_unit
from sweeps.trial_config import CONFIRMATION
from trainables.metrics.names import METRICS, test_name

_HEADER = ("", "difference", "interval", "level", "seeds", "photographs", "", "detected in 80 %")


def interval_chart(view: View, scale: int = 0) -> str:
    """The finalists against the baseline, and the controls against the winner, on a scale each; empty without any.

    Args:
        scale: how many times as large as the input the target is; 0 if unknown.
    """
    found, metric = view.found, view.metric
    unit = metric_unit(metric)
    drawn: list[str] = []
    for title, findings in (
        (f"{metric_title(metric)} of the finalists, against {found.baseline_name}", found.finalists),
        (f"{metric_title(metric)} of the controls, against {found.winner_name}", found.controls.get(metric, ())),
    ):
        spans = []
        for finding in findings:
            if (made := finding.interval) is not None:
                said: Colour = UPPER_BOUND if finding.configuration == CEILING else finding.verdict
                low, mean, high = made.low, made.mean, made.high
                text = (
                    f"{metric_text(metric, mean, sign=True)}{unit} "
                    f"({100 * made.level:.4g} %: {metric_text(metric, low)} … {metric_text(metric, high)}), {said}"
                )
                spans.append(Span(finding.configuration, mean, low, high, said, text))
        if spans:
            several = (
                "; corrected for several comparisons step by step, so each has a level of its own"
                if len(findings) > 1
                else ""
            )
            drawn.append(note(f"{title}: mean difference and interval{several}") + intervals(spans))
    controls = [f"{row['id']}: {_control_text(row['id'], scale)}" for row in view.controls]
    return "".join(drawn) + (note(f"Controls, which are not trained here: {'; '.join(controls)}.") if controls else "")


def _control_text(name: str, scale: int) -> str:
    """What a control restores with."""
    enlarged = {
        0: "the input, enlarged by bicubic interpolation if it is smaller than the target",
        1: "the input itself",
    }
    known = {
        UNTRAINED: enlarged.get(scale, f"the input, enlarged {scale} times by bicubic interpolation"),
        "input_latent": "the input through the autoencoder, unchanged",
        CEILING: "the target through the autoencoder, an upper bound",
    }
    return known.get(name) or f"the ResShift teacher, steps: {name.rpartition('_')[2]}"


def means(view: View) -> str:
    """A table: mean of every metric for the winner, the baseline and the controls; of the test images if measured."""
    found = view.found
    confirmed = {row["id"] for row in view.trials if row["kind"] == CONFIRMATION and row["status"] == "finished"}
    tested = bool(confirmed & set(found.winner_ids)) and not found.unconfirmed
    by_id = {row["id"]: row for row in view.rows}
    groups: list[list[Row]] = []
    finalists = [[row["id"] for row in rows] for rows in _configurations(view, confirmed)] if tested else []
    for ids in (found.winner_ids, found.baseline_ids, *finalists):
        chosen = [id for id in ids if (id in confirmed) == tested]
        if chosen and not any(by_id[chosen[0]] in rows for rows in groups):
            groups.append([by_id[id] for id in chosen])
    if not groups:
        return ""
    groups += [[row] for row in view.controls]
    names = {metric: test_name(metric) if tested else metric for metric in dict.fromkeys((found.metric, *METRICS))}
    measured = {m: name for m, name in names.items() if any(_mean(rows, name) is not None for rows in groups)}
    arrows = {metric: "↑" if formatting.is_larger_better(metric) else "↓" for metric in measured if metric in METRICS}
    header = [
        ("configuration: trials", False),
        *((f"{metric_title(metric)} {arrows.get(metric, '')}", True) for metric in measured),
    ]
    body, firsts = [], first_trials(view.trials)  # a configuration has the name of its first trial everywhere
    for rows in groups:
        ids = [row["id"] for row in rows]
        if rows[0]["kind"] == "control":
            css, title = "control", ids[0]
        else:
            css = "winner" if ids[0] in found.winner_ids else ""
            title = f"{view.names[firsts[formatting.configuration_of(rows[0])]['id']]}: {', '.join(ids)}"
            title += " (the baseline)" if ids[0] in found.baseline_ids else ""
        cells = [(metric_text(metric, _mean(rows, name)), True) for metric, name in measured.items()]
        body.append((css, "", [(title, False), *cells]))
    split = "test" if tested else "validation"
    return note(f"Means on the {split} photographs") + table(header, body)


def _configurations(view: View, ids: Collection[str]) -> list[list[Row]]:
    """The trials with these ids, by configuration."""
    found: dict[str, list[Row]] = {}
    for row in view.trials:
        if row["id"] in ids:
            found.setdefault(formatting.configuration_of(row), []).append(row)
    return list(found.values())


def comparisons(found: Answer) -> str:
    """The confirmed configurations against the baseline, and the winner against the controls, as a table."""
    body = [("", "", _finding(found.metric, finding)) for finding in found.finalists]
    for finding in found.controls.get(found.metric, ()):
        named = replace(finding, configuration=f"{finding.configuration} against {found.winner_name}")
        body.append(("control", "", _finding(found.metric, named)))
    if not body:
        return ""
    unit = metric_unit(found.metric)
    text = (
        f"Differences in {metric_title(found.metric)}{unit and f' in{unit}'} on the test photographs, from "
        f"{found.baseline_name} and, for controls, from {found.winner_name}; positive is better. Intervals cover the "
        "variation between photographs and between seeds, and are corrected for their number. The last column is the "
        "smallest true difference that would have been detected in 80 % of such confirmations."
    )
    return note(text) + table([(title, bool(title)) for title in _HEADER], body)


def _finding(metric: str, finding: Finding) -> list[tuple[str, bool]]:
    made = finding.interval
    name, seeds = (finding.configuration, False), (f"{finding.seeds} / {finding.reference_seeds}", True)
    photographs = (str(finding.photographs), True)
    if made is None:
        reason = finding.reason.value if finding.reason else ""
        return [name, *[("", True)] * 3, seeds, photographs, (f"no interval: {reason}", False), ("", True)]
    mean, low, high = (metric_text(metric, value, sign=True) for value in (made.mean, made.low, made.high))
    return [
        name,
        (mean, True),
        (f"{low} … {high}", True),
        (f"{100 * made.level:.4g} %", True),
        seeds,
        photographs,
        (finding.verdict, False),
        (metric_text(metric, made.detectable), True),
    ]


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [value for row in rows if math.isfinite(value := number(row, name))]
    return statistics.fmean(values) if values else None
