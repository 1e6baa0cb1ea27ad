"""The report of a sweep: one HTML page with the question, the answer, the pictures and the numbers.

`report/index.html` is complete in itself and loads nothing from elsewhere, so it can be mailed or archived. While a
sweep runs, the page asks `state.js` next to it whether there is a newer one, and offers it; it never reloads by itself.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from search_spaces import Distribution
from sweeps import formatting
from sweeps.answering.charts import Line, line_chart, stacked_chart
from sweeps.answering.comparison import answer
from sweeps.answering.evidence import comparisons, interval_chart, means
from sweeps.answering.importance import importance_bars, importances, slices
from sweeps.answering.leaderboard import board
from sweeps.answering.markup import charts, details, note, section, table
from sweeps.answering.pictures import image_section
from sweeps.answering.trade_offs import fronts, quality_and_cost
from sweeps.answering.verdict import Answer
from sweeps.answering.view import View, number
from sweeps.formatting import Row
from sweeps.planning.plan import Plan
from sweeps.recording.tables import RunTables, read_rows
from sweeps.trial_config import TRIAL
from trainables.common.paths import replace_file

_MAX_TERMS = 6  # as many loss terms as there are colours in the style sheet; the rest is one more
_MAX_CURVES = 150
_PICTURED = 50  # trials of the search, the best ones, among which the image is looked for whose values differ most
_STYLE, _SCRIPT = (Path(__file__).with_name(name) for name in ("report.css", "report.js"))
PAGE, STATE = "index.html", "state.js"


@dataclass(frozen=True)
class Contents:
    """Rows of the three tables of a run: leaderboard, history, per_image."""

    rows: Sequence[Row]
    history: Sequence[Row]
    per_image: Sequence[Row]

    @classmethod
    def read(cls, folder: Path) -> Contents:
        """Raises ValueError if a table cannot be read. Missing ones are empty."""
        return cls(*(read_rows(folder / f"{name}.parquet") for name in ("leaderboard", "history", "per_image")))


def write_report(
    folder: str | os.PathLike[str],
    metric: str,
    baseline_ids: Sequence[str],
    direction: str | None = None,
    question: str = "",
    found: Answer | None = None,
    contents: Contents | None = None,
    distributions: Mapping[str, Distribution] | None = None,
    status: str = "",
    running: bool = False,
    objectives: Sequence[str] = (),
) -> Path:
    """Write `report/index.html` of a run folder.

    Args:
        folder: results/<space>/<run>.
        metric: the objective.
        baseline_ids: the trials of the baseline, one per seed.
        direction: "max" or "min"; by default the metric's own.
        question: the question of the sweep.
        found: the answer, if known; otherwise it is computed.
        contents: the tables, if known; otherwise they are read from the folder. Tables may be missing.
        distributions: dotted name -> distribution of the space; without them there are no importances.
        status: one line about the state of the sweep.
        running: whether a newer page will follow.
        objectives: all objectives, `metric` first; by default `metric` alone.

    Returns:
        The page's path.

    Raises:
        ValueError: a table cannot be read, or see `sweeps.answering.comparison.answer`.
    """
    folder = Path(folder)
    contents = contents or Contents.read(folder)
    if found is None:
        found = answer(contents.rows, contents.per_image, metric, baseline_ids, direction)
    view = View.of(contents.rows, found)
    objective = formatting.metric_title(metric)
    sections = [
        ("answer", "Answer", _answer(view)),
        ("images", "Images", image_section(folder, view, contents.per_image, baseline_ids)),
        ("leaderboard", "Leaderboard", _leaderboard(view)),
        ("trade-offs", "Distortion, perception and cost", _trade_offs(view, objectives or (metric,))),
        ("settings", f"{objective} by hyperparameter", _settings(view, distributions or {})),
        ("curves", "Learning curves", _curves(contents.history, view)),
        ("losses", f"Loss terms of {found.baseline_name or 'the baseline'}", _losses(contents.history, view)),
        ("files", "Files of this run", _files(folder)),
    ]
    shown = [(anchor, title, content) for anchor, title, content in sections if content]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in shown)
    body = "".join(section(title, content, anchor) for anchor, title, content in shown)
    title = f"{folder.absolute().parent.name} · {folder.absolute().name}"
    now = time.time()
    state = {"version": f"{now:.3f}", "running": running, "status": status, "at": time.strftime("%H:%M:%S")}
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f'<p class="run">{escape(title)}</p><h1>{escape(question or title)}</h1>'
        f'<p id="status" class="note" data-version="{state["version"]}" data-running="{int(running)}">'
        f'<span id="news">{escape(status)}</span> '
        '<button id="newer" type="button" hidden>Show the new results</button></p>'
        f"<nav>{links}</nav>{body}</main><script>{_SCRIPT.read_text(encoding='utf-8')}</script></body></html>\n"
    )
    path = folder / "report" / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda new: new.write_text(page, encoding="utf-8"))
    # After the page: who reads it must find the page that it announces.
    announced = f"sweepState({json.dumps(state)});\n"
    replace_file(path.with_name(STATE), lambda new: new.write_text(announced, encoding="utf-8"))
    return path


def write_sweep_report(
    plan: Plan,
    folder: Path,
    tables: RunTables,
    baseline_ids: Sequence[str],
    found: Answer | None,
    status: str,
    running: bool = False,
) -> Path:
    """`write_report` for a sweep, with what its plan says and its tables hold."""
    rows = tables.leaderboard
    pictured = _with_pictures(
        rows, plan.objective, plan.direction, {*baseline_ids, *(found.winner_ids if found else ())}
    )
    space, contents = plan.question.space, Contents(rows, tables.history, tables.images_of(pictured))
    asked = (plan.objective, baseline_ids, plan.direction, space.question)
    objectives = [one.metric for one in plan.objectives]
    return write_report(folder, *asked, found, contents, space.distributions, status, running, objectives)


def _with_pictures(rows: Sequence[Row], metric: str, direction: str, shown: Collection[str]) -> set[str]:
    """The trials and controls whose values per image a report reads: those shown, those of the confirmation, and the
    best of the search. A sweep of thousands of trials has millions of such values.
    """
    sign = 1 if direction == "max" else -1
    searched = [row for row in rows if row["kind"] == TRIAL and math.isfinite(number(row, metric))]
    best = sorted(searched, key=lambda row: (row["status"] == "finished", sign * number(row, metric)), reverse=True)
    return {*shown, *(row["id"] for row in rows if row["kind"] != TRIAL), *(row["id"] for row in best[:_PICTURED])}


def _answer(view: View) -> str:
    first, *rest = view.found.sentences
    lines = "".join(f"<li>{escape(line)}</li>" for line in rest)
    evidence = interval_chart(view) + means(view)
    return (
        f'<div class="answer"><p class="verdict">{escape(first)}</p>{evidence}'
        f"{f'<ul>{lines}</ul>' if lines else ''}{details('Intervals in numbers', comparisons(view.found))}</div>"
    )


def _leaderboard(view: View) -> str:
    if not view.rows:
        return ""
    found = view.found
    laid_out = board(view.rows, found.metric, found.direction, found.baseline_ids, found.winner_id)
    errors = {row["id"]: row.get("error") or "" for row in view.rows}
    kinds = {row["id"]: row.get("status", "") for row in view.rows}
    body = []
    for name, cells in zip(laid_out.ids, laid_out.lines, strict=True):
        css = "winner" if name in found.winner_ids else "baseline" if name in found.baseline_ids else kinds[name]
        body.append((css, errors[name], [(cell.text, cell.number) for cell in cells]))
    return table([(cell.text, cell.number) for cell in laid_out.header], body)


def _trade_offs(view: View, objectives: Sequence[str]) -> str:
    compared, costs = fronts(view, objectives), quality_and_cost(view)
    legend = {**view.legend, "control": "controls", "other hollow": "not finished, fewer steps"}
    if compared:
        legend["other on-front"] = "on the front"
    text = "The front: trials that no other trial beats in both metrics. A line joins them. Controls are no part of it."
    return (note(text) if compared else "") + charts([*compared, *costs], legend)


def _settings(view: View, distributions: Mapping[str, Distribution]) -> str:
    legend = {**view.legend, "other hollow": "not finished, fewer steps"}
    return importance_bars(importances(view, distributions)) + charts(slices(view), legend)


def _curves(history: Sequence[Row], view: View) -> str:
    lines = []
    for name, reports in _by_trial(history).items():
        if name in view.names:
            points = [(row["step"], number(row, view.metric)) for row in reports]
            lines.append(Line(view.names[name], points, view.emphasis[name]))
    if not any(step for line in lines for step, _ in line.points):  # nothing was trained
        return ""
    # Emphasised lines are drawn last, on top.
    lines.sort(key=lambda line: ("baseline" in line.css) + 2 * ("winner" in line.css))
    shown = lines[-_MAX_CURVES:]
    left_out = f"{len(shown)} of {len(lines)} trials are shown." if len(shown) < len(lines) else ""
    chart = line_chart(shown, "step", formatting.metric_title(view.metric))
    return (note(left_out) if left_out else "") + charts([chart], view.legend)


def _losses(history: Sequence[Row], view: View) -> str:
    """Charts of loss terms on one logarithmic scale, baseline raw and weighted, winner weighted; and the share of each
    weighted term in their sum.
    """
    by_trial = _by_trial(history)
    baseline = next((reports for name, reports in by_trial.items() if name in view.found.baseline_ids), [])
    names = dict.fromkeys(name for row in baseline for name in row if row[name] is not None)
    terms = [name.removeprefix("loss/") for name in names if name.startswith("loss/")]

    def lines(reports: Sequence[Row], prefix: str) -> list[Line]:
        return [
            Line(term, [(row["step"], number(row, prefix + term)) for row in reports if row["step"]], _term(index))
            for index, term in enumerate(terms)
            if prefix + term in names
        ]

    shown = {"raw mean": lines(baseline, "loss/"), "weighted mean": lines(baseline, "weighted/")}
    whole = {"baseline": lines(baseline, "weighted/")}
    if view.found.winner_id in by_trial and view.found.winner_id not in view.found.baseline_ids:
        whole[view.found.winner_id] = lines(by_trial[view.found.winner_id], "weighted/")
        shown[f"weighted mean, {view.found.winner_id}"] = whole[view.found.winner_id]
    everything = [line for group in shown.values() for line in group]
    drawn = [line_chart(group, "step", label, log_y=True, y_of=everything) for label, group in shown.items() if group]
    for name, group in whole.items():
        if len(group) > 1 and len(group[0].points) > 1:
            sizes = [replace(line, points=[(step, abs(value)) for step, value in line.points]) for line in group]
            drawn.append(stacked_chart(sizes, "step", f"share of the total in %, {name}"))
    legend = {_term(index): term for index, term in enumerate(terms[:_MAX_TERMS])}
    return charts(drawn, legend | ({"other": "further terms"} if len(terms) > _MAX_TERMS else {}))


def _term(index: int) -> str:
    return f"term{index}" if index < _MAX_TERMS else "other"


def _files(folder: Path) -> str:
    """What lies next to the report."""
    files = {
        "leaderboard.csv": "one row per trial and per control",
        "history.parquet": "one row per validation",
        "per_image.parquet": "one row per trial and image",
        "best/": "the winner: weights, settings, model card",
        "trials/": "TensorBoard, checkpoints and pictures of every trial",
        "settings.yaml": "every setting, versions, commit",
        "sweep.log": "everything that was printed",
    }
    lines = "".join(
        f'<li><a href="../{name}">{name}</a> {escape(text)}</li>'
        for name, text in files.items()
        if (folder / name).exists()
    )
    return f'<ul class="files">{lines}</ul>' if lines else ""


def _by_trial(history: Sequence[Row]) -> dict[str, list[Row]]:
    reports: dict[str, list[Row]] = {}
    for row in sorted(history, key=lambda row: row["step"]):
        reports.setdefault(row["id"], []).append(row)
    return reports
