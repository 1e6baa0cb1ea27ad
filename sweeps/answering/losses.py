"""Charts of the loss terms: of the baseline and, if it is another configuration, of the winner; means over trials.

The remark on the shares of the loss (`sweeps.answering.remarks.shares_of_the_loss`) is the mean over the same trials.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape

from sweeps.answering.charts import Line, line_chart, stacked_chart
from sweeps.answering.markup import charts
from sweeps.answering.view import View, number
from sweeps.formatting import Row
from sweeps.recording.columns import RAW, WEIGHTED

_MAX_TERMS = 6  # as many loss terms as there are colours in the style sheet; the rest is one more


def loss_charts(by_trial: Mapping[str, Sequence[Row]], view: View) -> str:
    """Charts of loss terms on one logarithmic scale, baseline raw and weighted, winner weighted; and the share of each
    weighted term in their sum.

    Args:
        by_trial: trial -> its reports, by step.
    """
    found = view.found
    shown = {found.baseline_name or "the baseline": [id for id in found.baseline_ids if id in by_trial]}
    if not set(found.winner_ids) & set(found.baseline_ids):
        shown[found.winner_name] = [id for id in found.winner_ids if id in by_trial]
    shown = {name: ids for name, ids in shown.items() if ids}
    reports = {name: [by_trial[id] for id in ids] for name, ids in shown.items()}
    if not reports:
        return ""
    first = next(iter(reports.values()))
    names = dict.fromkeys(name for trial in first for row in trial for name in row if row[name] is not None)
    terms = [name.removeprefix(RAW) for name in names if name.startswith(RAW)]

    def lines(trials: Sequence[Sequence[Row]], prefix: str, of: Callable[[float], float] = float) -> list[Line]:
        return [
            Line(term, _mean(trials, prefix + term, of), _css(index))
            for index, term in enumerate(terms)
            if prefix + term in names
        ]

    raw, weighted = (lines(first, prefix) for prefix in (RAW, WEIGHTED))
    baseline, same = next(iter(reports)), repr(raw) == repr(weighted)
    groups = [(baseline, "loss (all weights are 1)" if same else "raw loss", raw)]
    groups += [
        (name, "weighted loss", lines(trials, WEIGHTED))
        for name, trials in reports.items()
        if name != baseline or not same
    ]
    everything = [line for _, _, group in groups for line in group]

    def titled(chart: str, name: str) -> str:
        of = ", ".join(shown[name])
        return f"{chart}<figcaption>{escape(f'{name}: mean of {of}')}</figcaption>"

    drawn = []
    for name, label, group in groups:
        if group:
            alt = f"{name}: {label} over step"
            drawn.append(titled(line_chart(group, "step", label, log_y=True, y_of=everything, alt=alt), name))
    for name, trials in reports.items():
        sizes = lines(trials, WEIGHTED, abs)
        if len(sizes) > 1 and len(sizes[0].points) > 1:
            label = "share of the weighted loss in %"
            drawn.append(titled(stacked_chart(sizes, "step", label, alt=f"{name}: {label} over step"), name))
    legend = {_css(index): term for index, term in enumerate(terms[:_MAX_TERMS])}
    return charts(drawn, legend | ({"other": "further terms"} if len(terms) > _MAX_TERMS else {}))


def _mean(trials: Sequence[Sequence[Row]], name: str, of: Callable[[float], float]) -> list[tuple[float, float]]:
    """(step, mean over the trials that have a value there), from the first step of training on."""
    values: dict[int, list[float]] = {}
    for reports in trials:
        for row in reports:
            if row["step"]:
                values.setdefault(row["step"], []).append(of(number(row, name)))
    known = {step: [value for value in of_step if math.isfinite(value)] for step, of_step in sorted(values.items())}
    return [(step, statistics.fmean(of_step) if of_step else math.nan) for step, of_step in known.items()]


def _css(index: int) -> str:
    return f"term{index}" if index < _MAX_TERMS else "other"
