"""The report of a sweep: one HTML page with the question, the answer, the numbers and the pictures.

The page is a single file without scripts and loads nothing else, so it can be mailed or archived.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from sweeps import formatting
from sweeps.answering.charts import Dot, Line, line_chart, scatter
from sweeps.answering.comparison import answer
from sweeps.answering.intervals import Finding
from sweeps.answering.leaderboard import board
from sweeps.answering.verdict import Answer
from sweeps.formatting import Row
from sweeps.recording.tables import read_rows

_MAX_TERMS = 6  # as many loss terms as there are colours in the style sheet
_STYLE = Path(__file__).with_name("report.css")


def write_report(
    folder: str | os.PathLike[str],
    metric: str,
    baseline_ids: Sequence[str],
    direction: str | None = None,
    question: str = "",
    found: Answer | None = None,
    images: str = "**/*.png",
) -> Path:
    """Write `report/index.html` of a run folder from its tables.

    Args:
        folder: results/<space>/<run>, with leaderboard.parquet; the other tables may be missing.
        metric: the objective.
        baseline_ids: the trials of the baseline, one per seed.
        direction: "max" or "min"; by default the metric's own.
        question: the question of the sweep.
        found: the answer, if known; otherwise it is computed.
        images: pattern of pictures below trials/<id>/. For the winner, the baseline and each control, the page shows
            the last picture by path.

    Returns:
        The page's path.

    Raises:
        ValueError: a table cannot be read, or see `sweeps.answering.comparison.answer`.
    """
    folder = Path(folder)
    rows = read_rows(folder / "leaderboard.parquet")
    history = read_rows(folder / "history.parquet")
    if found is None:
        found = answer(rows, read_rows(folder / "per_image.parquet"), metric, baseline_ids, direction)
    sections = [
        _answer(found),
        _section("Leaderboard", _leaderboard(rows, found)),
        _section("Confirmed on the test photographs", _comparisons(found)),
        _section(f"{formatting.metric_title(metric)} by hyperparameter", _settings(rows, found)),
        _section("Learning curves", _curves(history, rows, found)),
        _section(f"Loss terms of {found.baseline_name or 'the baseline'}", _losses(history, found)),
        _section("Images", _images(folder, rows, found, images)),
    ]
    title = f"{folder.parent.name} · {folder.name}"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f'<p class="run">{escape(title)}</p><h1>{escape(question or title)}</h1>{"".join(sections)}'
        "</main></body></html>\n"
    )
    path = folder / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(".index.html.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _section(title: str, content: str) -> str:
    """A titled section, or nothing if there is nothing to show."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _answer(found: Answer) -> str:
    first, *rest = found.sentences
    numbers = "".join(f"<li>{escape(line)}</li>" for line in rest)
    text = f'<p class="verdict">{escape(first)}</p>' + (f"<ul>{numbers}</ul>" if numbers else "")
    return f'<section class="answer">{text}</section>'


def _leaderboard(rows: Sequence[Row], found: Answer) -> str:
    table = board(rows, found.metric, found.direction, found.baseline_ids, found.winner_id)
    errors = {row["id"]: row.get("error") or "" for row in rows}
    kinds = {row["id"]: row.get("status", "") for row in rows}
    body = []
    for name, cells in zip(table.ids, table.lines, strict=True):
        css = "winner" if name in found.winner_ids else "baseline" if name in found.baseline_ids else kinds[name]
        body.append((css, errors[name], [(cell.text, cell.number) for cell in cells]))
    return _table([(cell.text, cell.number) for cell in table.header], body)


def _comparisons(found: Answer) -> str:
    """The confirmed configurations against the baseline, and the winner against the controls."""
    header = [(text, bool(text)) for text in _COMPARED]
    unit = formatting.metric_unit(found.metric)
    body = [("", "", _finding(found.metric, finding)) for finding in found.finalists]
    controls = found.controls.get(found.metric, ())
    body += [
        ("control", "", _finding(found.metric, replace(c, configuration=f"{c.configuration} against the winner")))
        for c in controls
    ]
    if not body:
        return ""
    note = (
        f"Differences in {formatting.metric_title(found.metric)}{unit and f' in{unit}'} on the test photographs, from "
        f"{found.baseline_name} and, for controls, from the winner; positive is better. Intervals hold the luck of "
        "photographs and of seeds, and are corrected for their number. The last column is the smallest true difference "
        "that would have been told in 80 % of such confirmations."
    )
    return f'<p class="note">{escape(note)}</p>{_table(header, body)}'


_COMPARED = ("", "difference", "interval", "level", "seeds", "photographs", "", "could tell")


def _finding(metric: str, finding: Finding) -> list[tuple[str, bool]]:
    made = finding.interval
    name, seeds = (finding.configuration, False), (f"{finding.seeds} / {finding.reference_seeds}", True)
    photographs = (str(finding.photographs), True)
    if made is None:
        reason = finding.reason.value if finding.reason else ""
        return [
            name,
            *[("", True)] * 3,
            seeds,
            (str(finding.photographs), True),
            (f"no interval: {reason}", False),
            ("", True),
        ]
    mean, low, high = (formatting.metric_text(metric, value, sign=True) for value in (made.mean, made.low, made.high))
    return [
        name,
        (mean, True),
        (f"{low} … {high}", True),
        (f"{100 * made.level:.4g} %", True),
        seeds,
        photographs,
        (finding.verdict, False),
        (formatting.metric_text(metric, made.detectable), True),
    ]


def _settings(rows: Sequence[Row], found: Answer) -> str:
    """Charts of the objective over every numeric hyperparameter that varied."""
    varied = formatting.varied_settings(rows)
    objective = formatting.metric_title(found.metric)
    trials = [row for row in rows if row["kind"] != "control"]
    controls = [(row["id"], _number(row, found.metric)) for row in rows if row["kind"] == "control"]
    charts = []
    for name in varied:
        dots = [
            Dot(
                formatting.trial_text(row, varied),
                _number(row, formatting.CONFIG + name),
                _number(row, found.metric),
                _emphasis(row, found),
            )
            for row in trials
        ]
        if len({dot.x for dot in dots if math.isfinite(dot.x)}) > 1:
            charts.append(scatter(dots, name, objective, controls))
    emphasis = {**_emphases(found), "other hollow": "not finished, fewer steps"}
    return _charts(charts, emphasis)


def _curves(history: Sequence[Row], rows: Sequence[Row], found: Answer) -> str:
    by_id = {row["id"]: row for row in rows}
    varied = formatting.varied_settings(rows)
    lines = []
    for name, reports in _by_trial(history).items():
        points = [(row["step"], _number(row, found.metric)) for row in reports]
        if name in by_id:
            lines.append(Line(formatting.trial_text(by_id[name], varied), points, _emphasis(by_id[name], found)))
    if not lines:
        return ""
    # Emphasised lines are drawn last, on top.
    lines.sort(key=lambda line: ("baseline" in line.css) + 2 * ("winner" in line.css))
    chart = line_chart(lines, "step", formatting.metric_title(found.metric))
    return _charts([chart], _emphases(found))


def _losses(history: Sequence[Row], found: Answer) -> str:
    """Charts of loss terms on one logarithmic scale: baseline raw and weighted, winner weighted."""
    by_trial = _by_trial(history)
    baseline = next((reports for name, reports in by_trial.items() if name in found.baseline_ids), [])
    names = dict.fromkeys(name for row in baseline for name in row)
    terms = [name.removeprefix("loss/") for name in names if name.startswith("loss/")][:_MAX_TERMS]

    def lines(reports: Sequence[Row], prefix: str) -> list[Line]:
        return [
            Line(term, [(row["step"], _number(row, prefix + term)) for row in reports], f"term{index}")
            for index, term in enumerate(terms)
            if prefix + term in names
        ]

    shown = {"raw mean": lines(baseline, "loss/"), "weighted mean": lines(baseline, "weighted/")}
    if found.winner_id in by_trial and found.winner_id not in found.baseline_ids:
        shown[f"weighted mean, {found.winner_id}"] = lines(by_trial[found.winner_id], "weighted/")
    everything = [line for group in shown.values() for line in group]
    charts = [line_chart(group, "step", label, log_y=True, y_of=everything) for label, group in shown.items() if group]
    return _charts(charts, {f"term{index}": term for index, term in enumerate(terms)})


def _images(folder: Path, rows: Sequence[Row], found: Answer, pattern: str) -> str:
    controls = [row["id"] for row in rows if row["kind"] == "control"]
    chosen = dict.fromkeys([*([found.winner_id] if found.winner_id else []), *found.baseline_ids[:1], *controls])
    by_id = {row["id"]: row for row in rows}
    varied = formatting.varied_settings(rows)
    figures = []
    for name in chosen:
        files = sorted((folder / "trials" / name).glob(pattern))
        if files:
            data = base64.b64encode(files[-1].read_bytes()).decode("ascii")
            steps = f", step {by_id[name]['steps']}" if by_id[name]["steps"] else ""
            caption = escape(formatting.trial_text(by_id[name], varied) + steps)
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return "".join(figures)


def _table(header: Sequence[tuple[str, bool]], body: Sequence[tuple[str, str, Sequence[tuple[str, bool]]]]) -> str:
    """A table of (text, is a number) cells. `body` has the CSS class, the tooltip and the cells of every line."""

    def cells(tag: str, line: Sequence[tuple[str, bool]]) -> str:
        css = {True: ' class="number"', False: ""}
        return "".join(f"<{tag}{css[number]}>{escape(text)}</{tag}>" for text, number in line)

    lines = "".join(
        f'<tr class="{escape(css)}" title="{escape(hint)}">{cells("td", line)}</tr>' for css, hint, line in body
    )
    head = f"<thead><tr>{cells('th', header)}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{lines}</tbody></table></div>'


def _charts(charts: Sequence[str], legend: Mapping[str, str]) -> str:
    """Charts side by side under their legend. `legend`: CSS class -> text."""
    if not charts:
        return ""
    swatches = (
        f'<svg viewBox="0 0 12 12"><circle class="dot {css}" cx="6" cy="6" r="4.5"/></svg>{escape(text)}'
        for css, text in legend.items()
    )
    entries = "".join(f"<span>{swatch}</span>" for swatch in swatches)
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    return f'<p class="legend">{entries}</p><div class="charts">{figures}</div>'


def _emphases(found: Answer) -> dict[str, str]:
    baseline = {"baseline": found.baseline_name} if found.baseline_ids else {}
    return {"winner": f"winner, {found.winner_id}", **baseline, "other": "other trials"}


def _emphasis(row: Row, found: Answer) -> str:
    css = "winner" if row["id"] in found.winner_ids else "baseline" if row["id"] in found.baseline_ids else "other"
    return css if row["status"] == "finished" else f"{css} hollow"


def _by_trial(history: Sequence[Row]) -> dict[str, list[Row]]:
    reports: dict[str, list[Row]] = {}
    for row in sorted(history, key=lambda row: row["step"]):
        reports.setdefault(row["id"], []).append(row)
    return reports


def _number(row: Row, name: str) -> float:
    """The value as a float; NaN if it is not a number (charts skip NaN)."""
    value = row.get(name)
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else math.nan
