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
from dataclasses import dataclass
from html import escape
from pathlib import Path

from search_spaces import Distribution
from sweeps import formatting
from sweeps.answering.charts import Line, line_chart
from sweeps.answering.comparison import answer
from sweeps.answering.evidence import comparisons, interval_chart, means
from sweeps.answering.importance import importance_bars, importances, slices
from sweeps.answering.leaderboard import board, key
from sweeps.answering.losses import loss_charts
from sweeps.answering.markup import GROUP, Cells, bullets, charts, details, note, section, table
from sweeps.answering.pictures import image_section
from sweeps.answering.setup import Setup, meanings, setup_of
from sweeps.answering.trade_offs import front_plots, quality_and_cost
from sweeps.answering.verdict import Answer
from sweeps.answering.view import View, number
from sweeps.formatting import Row
from sweeps.planning.plan import Plan
from sweeps.recording.tables import RunTables, read_rows
from sweeps.trial_config import TRIAL
from trainables.common.paths import replace_file
from trainables.metrics.names import METRICS

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
    setup: Setup | None = None,
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
        setup: what was done, if known.

    Returns:
        The page's path.

    Raises:
        ValueError: a table cannot be read, or see `sweeps.answering.comparison.answer`.
    """
    folder, setup = Path(folder), setup or Setup()
    contents = contents or Contents.read(folder)
    if found is None:
        found = answer(contents.rows, contents.per_image, metric, baseline_ids, direction)
    view = View.of(contents.rows, found)
    objective, reports = formatting.metric_title(metric), _by_trial(contents.history)
    sections = [
        ("answer", "Answer", _answer(view, setup.scale)),
        ("images", "Images", image_section(folder, view, contents.per_image, baseline_ids)),
        ("leaderboard", "Leaderboard", _leaderboard(view)),
        ("trade-offs", "Distortion, perception and cost", _trade_offs(view, objectives or (metric,))),
        ("settings", f"{objective} by hyperparameter", _settings(view, distributions or {})),
        ("curves", "Learning curves", _curves(reports, view)),
        ("losses", f"Loss terms of {found.baseline_name or 'the baseline'}", loss_charts(reports, view)),
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
        f"{bullets(setup.lines, 'setup')}<nav>{links}</nav>{body}</main>"
        f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script></body></html>\n"
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
    more = (status, running, objectives, setup_of(plan))
    return write_report(folder, *asked, found, contents, space.distributions, *more)


def _with_pictures(rows: Sequence[Row], metric: str, direction: str, shown: Collection[str]) -> set[str]:
    """The trials and controls whose values per image a report reads: those shown, those of the confirmation, and the
    best of the search. A sweep of thousands of trials has millions of such values.
    """
    sign = 1 if direction == "max" else -1
    searched = [row for row in rows if row["kind"] == TRIAL and math.isfinite(number(row, metric))]
    best = sorted(searched, key=lambda row: (row["status"] == "finished", sign * number(row, metric)), reverse=True)
    return {*shown, *(row["id"] for row in rows if row["kind"] != TRIAL), *(row["id"] for row in best[:_PICTURED])}


def _answer(view: View, scale: int) -> str:
    first, *rest = view.found.sentences
    evidence = interval_chart(view, scale) + means(view)
    measured = [name for name in METRICS if any(math.isfinite(number(row, name)) for row in view.rows)]
    return (
        f'<div class="answer"><p class="verdict">{escape(first)}</p>{evidence}{bullets(rest)}'
        f"{details('Intervals in numbers', comparisons(view.found))}"
        f"{details('What the metrics mean', bullets(meanings(measured)))}</div>"
    )


def _leaderboard(view: View) -> str:
    if not view.rows:
        return ""
    found = view.found
    laid_out = board(view.rows, found.metric, found.direction, found.baseline_ids, found.winner_id)
    errors = {row["id"]: row.get("error") or "" for row in view.rows}
    kinds = {row["id"]: row.get("status", "") for row in view.rows}
    body: list[tuple[str, str, Cells]] = []
    block = ""
    for name, cells, own in zip(laid_out.ids, laid_out.lines, laid_out.blocks, strict=True):
        if own != block and len(set(laid_out.blocks)) > 1:
            body.append((GROUP, "", [(own, False)]))
        block = own
        css = "winner" if name in found.winner_ids else "baseline" if name in found.baseline_ids else kinds[name]
        body.append((css, errors[name], [(cell.text, cell.number, cell.whole) for cell in cells]))
    objective, titles = formatting.metric_title(found.metric), [cell.text for cell in laid_out.header]
    tested = any(title.startswith(f"test {objective} ") for title in titles)
    # Next to a column of test values, the other one says whose values it has.
    titles = [f"validation\n{title}" if tested and title.startswith(f"{objective} ") else title for title in titles]
    titles = [title.replace("test ", "test\n") if title.startswith("test ") else title for title in titles]
    notes = ["1, 2, ...: rank in the search", *key(view.rows, laid_out, found.baseline_ids, found.winner_id)]
    if tested:
        notes.append('values are of the validation photographs, except those in columns named "test"')
    header = [(title, cell.number) for title, cell in zip(titles, laid_out.header, strict=True)]
    return note(f"{'; '.join(notes)}.") + table(header, body)


def _trade_offs(view: View, objectives: Sequence[str]) -> str:
    compared, costs = front_plots(view, objectives), quality_and_cost(view)
    legend = {**view.legend, "control": "controls", "other hollow": "not finished, fewer steps"}
    if compared:
        legend["other on-front"] = "on the front"
    text = "The front: trials that no other trial beats in both metrics. A line joins them. Controls are no part of it."
    return (note(text) if compared else "") + charts([*compared, *costs], legend)


def _settings(view: View, distributions: Mapping[str, Distribution]) -> str:
    legend = {**view.legend, "other hollow": "not finished, fewer steps"}
    return importance_bars(importances(view, distributions)) + charts(slices(view), legend)


def _curves(reports: Mapping[str, Sequence[Row]], view: View) -> str:
    lines = []
    for name, rows in reports.items():
        if name in view.names:
            points = [(row["step"], number(row, view.metric)) for row in rows]
            lines.append(Line(view.names[name], points, view.emphasis[name]))
    if not any(step for line in lines for step, _ in line.points):  # nothing was trained
        return ""
    # Emphasised lines are drawn last, on top.
    lines.sort(key=lambda line: ("baseline" in line.css) + 2 * ("winner" in line.css))
    shown = lines[-_MAX_CURVES:]
    left_out = f"{len(shown)} of {len(lines)} trials are shown." if len(shown) < len(lines) else ""
    chart = line_chart(shown, "step", formatting.metric_title(view.metric))
    return (note(left_out) if left_out else "") + charts([chart], view.legend)


def _files(folder: Path) -> str:
    """What lies next to the report."""
    files = {
        "leaderboard.csv": "one row per trial and per control",
        "history.parquet": "one row per validation",
        "per_image.parquet": "one row per trial and image",
        "best/": "the kept weights, their settings, a model card",
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
