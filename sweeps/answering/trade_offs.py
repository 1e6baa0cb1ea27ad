"""What a better value costs: distortion against perception, and quality against training time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

import numpy as np

from sweeps import formatting
from sweeps.answering.charts import Dot, scatter
from sweeps.answering.view import View, number
from sweeps.formatting import Row
from sweeps.planning.pareto import non_dominated
from sweeps.trial_config import CONFIRMATION
from trainables.metrics.names import METRICS, test_name

DISTORTION = "val/psnr"
LONG = 300.0  # seconds; longer training is shown in minutes
_COMPRESSED = 0.4  # share of an axis below which the trials near each other get a chart of their own
_FENCE = 1.5  # interquartile ranges beyond the quartiles, Tukey's fence


def perception(rows: Sequence[Row], metric: str) -> str:
    """The metric of perceived quality that these rows have: the objective if it is one, else the first of its kind;
    empty without one.
    """
    known = [name for name, each in METRICS.items() if each.perceptual or each.compared_with == "nothing"]
    measured = [name for name in known if any(math.isfinite(number(row, name)) for row in rows)]
    return metric if metric in measured else next(iter(measured), "")


def front(points: Sequence[tuple[float, float]], larger: tuple[bool, bool]) -> list[tuple[float, float]]:
    """The points that no other one beats in one value and equals or beats in the other, sorted by the first value."""
    different = sorted(set(points))
    signs = np.where(larger, 1.0, -1.0)
    return [different[k] for k in non_dominated(np.array(different, dtype=np.float64).reshape(-1, 2) * signs)]


def pairs(view: View, objectives: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of metrics, (x, y), whose front is worth a chart.

    Args:
        objectives: of the search, the first one first.

    Returns:
        PSNR and a metric of perceived quality; without one, PSNR and the objective, or the next metric that was
        measured. Then the first objective with each of the others.
    """
    measured = [name for name in METRICS if any(math.isfinite(number(row, name)) for row in view.trials)]
    others = [
        name for name in (perception(view.rows, view.metric), view.metric, *measured) if name and name != DISTORTION
    ]
    found = [(DISTORTION, others[0])] if others and DISTORTION in measured else []
    found += [(objectives[0], other) for other in objectives[1:]]
    return list({frozenset(pair): pair for pair in found}.values())


def front_plots(view: View, objectives: Sequence[str]) -> list[str]:
    """Charts of two metrics against each other, with the front of the trials and with the controls: PSNR against a
    perceptual metric, and the objectives of a sweep that has several.

    One of the validation images with all finished trials; one of the test images, if there was a confirmation. If
    controls or a few trials are so far away that the others cannot be told apart, a further chart has only the others.
    It keeps the whole front and all trials of the confirmation: whoever looks at it alone must see the same winners.
    """
    finished = [row for row in view.trials if row["status"] == "finished"]
    confirmed = [row for row in finished if row["kind"] == CONFIRMATION]
    charts = []
    for x, y in pairs(view, objectives):
        charts += _front_charts(view, finished, x, y)
        charts += _front_charts(view, confirmed, test_name(x), test_name(y))
    return charts


def _front_charts(view: View, trials: Sequence[Row], x: str, y: str) -> list[str]:
    dots = [_dot(view, row, number(row, x), y) for row in trials]
    at_of = {row["id"]: (dot.x, dot.y) for row, dot in zip(trials, dots, strict=True) if math.isfinite(dot.x + dot.y)}
    references = [Dot(row["id"], number(row, x), number(row, y), "control", row["id"]) for row in view.controls]
    at, around = ([(d.x, d.y) for d in some if math.isfinite(d.x + d.y)] for some in (dots, references))
    if not at:
        return []
    best = front(at, (formatting.is_larger_better(x), formatting.is_larger_better(y)))
    dots = [replace(dot, css=f"{dot.css} on-front") if (dot.x, dot.y) in best else dot for dot in dots]
    dots.sort(key=_emphasised)
    titles = [f"{formatting.metric_title(metric)}{formatting.metric_unit(metric)}" for metric in (y, x)]
    on_it = [f"{d.name} {d.y:.4g} at {d.x:.4g}" for d in dots if "on-front" in d.css]
    alt = f"{' over '.join(titles)} of {formatting.count_text(len(at), 'trial')}. On their front: {', '.join(on_it)}."
    controls = [f"{d.name} {d.y:.4g} at {d.x:.4g}" for d in references if math.isfinite(d.x + d.y)]
    with_controls = f"{alt} Controls: {', '.join(controls)}." if controls else alt
    charts = [scatter([*references, *dots], _axis(x), _axis(y), path=best, alt=with_controls)]
    near = _near(at) | {
        *best,
        *(at_of[row["id"]] for row in trials if row["kind"] == CONFIRMATION and row["id"] in at_of),
    }
    if len(near) > 2 and _hidden(sorted(near), [*at, *around]):
        far = [id for id, point in at_of.items() if point not in near]
        named = [f"{'the outlying trial' if len(far) == 1 else 'the outlying trials'} {', '.join(far)}"] if far else []
        without = f"Without {' and '.join([*(['the controls'] if around else []), *named])}."
        dots = [dot for dot in dots if (dot.x, dot.y) in near]
        seen = f"{' over '.join(titles)} of {formatting.count_text(len(dots), 'trial')}. {without}"
        zoomed = scatter(dots, _axis(x), _axis(y), path=best, alt=seen)
        charts.append(f"{zoomed}<figcaption>{escape(without)}</figcaption>")
    return charts


def _emphasised(dot: Dot) -> int:
    """Dots with a higher number are drawn later, on top."""
    return ("on-front" in dot.css) + 2 * ("baseline" in dot.css) + 4 * ("winner" in dot.css)


def quality_and_cost(view: View) -> list[str]:
    """Charts of the objective against training time and, if it differs, against the number of trained parameters."""
    seconds = [(formatting.step_seconds(row) or math.nan) * (row["steps"] or 0) for row in view.trials]
    long = max((value for value in seconds if math.isfinite(value)), default=0.0) > LONG
    unit, scale = ("minutes", 60.0) if long else ("seconds", 1.0)
    costs = {
        f"training without validations, {unit}": [value / scale for value in seconds],
        "trained parameters, millions": [number(row, "trained_parameters") / 1e6 for row in view.trials],
    }
    charts = []
    for title, of in costs.items():
        if len({round(value, 9) for value in of if math.isfinite(value)}) > 1:
            dots = [_dot(view, row, value, view.metric) for row, value in zip(view.trials, of, strict=True)]
            charts.append(scatter(dots, title, _axis(view.metric), view.guides))
    return charts


def _dot(view: View, row: Row, x: float, y: str) -> Dot:
    return Dot(view.names[row["id"]], x, number(row, y), view.emphasis[row["id"]])


def _axis(metric: str) -> str:
    better = "larger is better" if formatting.is_larger_better(metric) else "smaller is better"
    return f"{formatting.metric_title(metric)}{formatting.metric_unit(metric)} ({better})"


def _near(points: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """The different points without outliers in either value."""
    values = np.array(points)
    low, high = np.percentile(values, [25, 75], axis=0)
    room = np.where(high > low, _FENCE * (high - low), np.inf)
    inside = ((values >= low - room) & (values <= high + room)).all(axis=1)
    return {point for point, kept in zip(points, inside, strict=True) if kept}


def _hidden(some: Sequence[tuple[float, float]], everything: Sequence[tuple[float, float]]) -> bool:
    """Whether all points stretch an axis so far that some of them share a small part of it."""
    return any(np.ptp(np.array(some), axis=0) < _COMPRESSED * np.ptp(np.array(everything), axis=0))
