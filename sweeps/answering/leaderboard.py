"""The leaderboard as text: for a terminal or a log file, and as Markdown for documents.

Trials of the confirmation come first, sorted by their value on test. Finished trials of the search and controls follow,
sorted by their value on validation; then stopped, interrupted and running trials, because their values come from fewer
steps. Failed trials come last.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps import formatting
from sweeps.answering.labels import shortened
from sweeps.formatting import Row
from sweeps.trial_config import CONFIRMATION
from trainables.metrics.names import test_name

_UNFINISHED = ("running", "interrupted", "stopped", "failed")
_MAX_LABEL = 22
_BEST = "best step"


@dataclass(frozen=True)
class Cell:
    """One cell of the leaderboard: its text, and whether it is a number (aligned right); and the `whole` text where a
    part of it is left out.
    """

    text: str
    number: bool = False
    whole: str = ""


@dataclass(frozen=True)
class Board:
    """The leaderboard as cells, before rendering.

    Attributes:
        header: column titles; ↑ or ↓ after a metric shows the better direction.
        lines: cells of each row.
        ids: id of each row's trial or control.
        blocks: what each row's block has, and in which order.
        hidden: number of columns that did not fit into the requested width.
    """

    header: list[Cell]
    lines: list[list[Cell]]
    ids: list[str]
    blocks: list[str]
    hidden: int = 0


def board(
    rows: Sequence[Row],
    metric: str,
    direction: str | None = None,
    baseline_ids: Sequence[str] = (),
    winner_id: str | None = None,
) -> Board:
    """Lay out the leaderboard: rank, id, label, status, steps, best step if trials keep it, objective, objective on
    test, cost, varied hyperparameters, other metrics.

    The gain over the baseline, positive where better, is shown for controls and for trials with as many steps as the
    baseline. The step time is shown if a trial trained; the number of trained parameters, if it differs between trials.

    Args:
        rows: rows of leaderboard.parquet.
        metric: the objective.
        direction: "max" or "min"; by default the metric's own.
        baseline_ids: trials of the baseline; gains are over their mean.
        winner_id: the row to mark with a star.
    """
    larger = formatting.is_larger_better(metric, direction)
    varied = formatting.varied_settings(rows)
    others = [name for name in _metric_names(rows) if name != metric]
    baseline = [row for row in rows if row["id"] in baseline_ids]
    reference = _mean([row.get(metric) for row in baseline])
    lengths = {row.get("steps") for row in baseline}
    timed = any(formatting.step_seconds(row) for row in rows)
    tested = any(_number(row.get(test_name(metric))) is not None for row in rows)
    best = any(row.get("best_step") is not None for row in rows)
    sized = len({formatting.parameters_text(row.get("trained_parameters")) for row in rows} - {""}) > 1

    def cells(row: Row, mark: str) -> dict[str, Cell]:
        """The row's cells by column title."""
        control, value = row.get("kind") == "control", _number(row.get(metric))
        found = {
            "": Cell(mark, True),
            "id": Cell(str(row["id"])),
            "label": _clipped(row.get("label") or ""),
            "status": Cell(_status(row)),
            "steps": Cell("" if control else str(row.get("steps", "")), True),
        }
        if best:
            found[_BEST] = Cell("" if row.get("best_step") is None else str(row["best_step"]), True)
        found[_titled(metric, larger)] = Cell(formatting.metric_text(metric, value), True)
        if reference is not None:
            comparable = value is not None and (control or row.get("steps") in lengths)
            gain = (value - reference) * (1 if larger else -1) if value is not None and comparable else None
            found["gain"] = Cell("" if gain is None else formatting.metric_text(metric, gain, True), True)
        if tested:
            value = _number(row.get(test_name(metric)))
            found[_titled(test_name(metric), larger)] = Cell(formatting.metric_text(metric, value), True)
        if timed:
            found["ms a step"] = Cell(formatting.milliseconds_text(formatting.step_seconds(row)), True)
        if sized:
            found["trained"] = Cell(formatting.parameters_text(row.get("trained_parameters")), True)
        settings = formatting.settings_of(row)
        for name, title in formatting.short_names(varied).items():
            title = formatting.CONFIG + name if title in found else title  # e.g. a hyperparameter named "steps"
            found[title] = _clipped(formatting.setting_text(settings.get(name)), True)
        for name in others:
            found[_titled(name)] = Cell(formatting.metric_text(name, _number(row.get(name))), True)
        if not any(row.get("label") for row in rows):
            del found["label"]
        return found

    ranked = sorted(rows, key=lambda row: _place(row, metric, larger))
    lines, rank = [], 0
    for row in ranked:
        searched = row.get("status") == "finished" and row.get("kind") != CONFIRMATION
        done = searched and _number(row.get(metric)) is not None
        rank += done
        place = str(rank) if done else "·" if row.get("kind") == "control" else ""
        lines.append(list(cells(row, ("★" if row["id"] == winner_id else "") + place).values()))
    header = [Cell(title, cell.number) for title, cell in cells({"id": ""}, "").items()]
    value = formatting.metric_title(metric)
    searched = "Search and controls" if any(row.get("kind") == "control" for row in rows) else "Search"
    blocks = {-1: f"Confirmation, by {formatting.metric_title(test_name(metric))}"}
    blocks |= {0: f"{searched}, by validation {value}", 1: "Not finished, by steps", 2: "Failed"}
    return Board(header, lines, [str(r["id"]) for r in ranked], [blocks[_place(r, metric, larger)[0]] for r in ranked])


def format_leaderboard(
    rows: Sequence[Row],
    metric: str,
    direction: str | None = None,
    baseline_ids: Sequence[str] = (),
    winner_id: str | None = None,
    width: int = 110,
) -> str:
    """The leaderboard as a text table without colours, for the terminal and the log file.

    The rightmost columns are dropped if they do not fit into `width` characters; the last line says how many.
    The other arguments are those of `board`.
    """
    table = _fitted(board(rows, metric, direction, baseline_ids, winner_id), width)
    widths = _widths(table)
    lines = [_line(table.header, widths), "  ".join("-" * size for size in widths)]
    lines += [_line(cells, widths) for cells in table.lines]
    notes = key(rows, table, baseline_ids, winner_id)
    if table.hidden:
        notes.append(f"{formatting.count_text(table.hidden, 'more column')} in leaderboard.csv")
    lines += textwrap.wrap("; ".join(notes), width)
    return "\n".join(line.rstrip() for line in lines)


def key(rows: Sequence[Row], table: Board, baseline_ids: Sequence[str], winner_id: str | None) -> list[str]:
    """What the marks and columns mean. Arguments are those of `board`, and what it returned."""
    notes = []
    if winner_id in table.ids:
        judged = "test mean over all seeds" if any(row.get("kind") == CONFIRMATION for row in rows) else "mean"
        notes.append(f"★ kept weights, of the configuration with the best {judged}")
    if any(row.get("kind") == "control" for row in rows):
        notes.append("· control, not trained here")
    if baseline_ids:
        notes.append(f"gain over the mean of {', '.join(baseline_ids)}, positive is better")
    if _BEST in [cell.text for cell in table.header]:
        notes.append(f"{_BEST}: the step of all values and of the kept weights")
    return notes


def to_markdown(
    rows: Sequence[Row],
    metric: str,
    direction: str | None = None,
    baseline_ids: Sequence[str] = (),
    winner_id: str | None = None,
) -> str:
    """The leaderboard as a Markdown table, the winner in bold. Arguments are those of `board`."""
    table = board(rows, metric, direction, baseline_ids, winner_id)

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    def escaped(text: str) -> str:
        return re.sub(r"([\\|*_`<\[])", r"\\\1", text)

    lines = [line([escaped(cell.text) for cell in table.header])]
    lines.append(line(["---:" if cell.number else "---" for cell in table.header]))
    for name, cells in zip(table.ids, table.lines, strict=True):
        texts = [escaped(cell.whole or cell.text) for cell in cells]
        lines.append(line([f"**{text}**" if text and name == winner_id else text for text in texts]))
    return "\n".join(lines)


def _status(row: Row) -> str:
    """The status, with the kind of a trial of the confirmation."""
    status = str(row.get("status", ""))
    if row.get("kind") != CONFIRMATION:
        return status
    return "confirmed" if status == "finished" else f"{status} (confirmation)"


def _place(row: Row, metric: str, larger: bool) -> tuple[int, float, float]:
    """Sort key: the confirmation by its value on test; finished trials and controls by value; then the others, most
    steps first.
    """
    confirms = row.get("kind") == CONFIRMATION and row.get("status") == "finished"
    value = _number(row.get(test_name(metric) if confirms else metric))
    loss = math.inf if value is None else -value if larger else value
    status = row.get("status", "")
    if status not in _UNFINISHED:
        return -1 if confirms else 0, 0.0, loss
    return (2 if status == "failed" else 1), -float(row.get("steps") or 0), loss


def _metric_names(rows: Sequence[Row]) -> list[str]:
    """The metrics of the rows: known ones in their usual order, then others by name."""
    present = {name for row in rows for name in row if name.startswith("val/") and row[name] is not None}
    usual = [name for name in formatting.METRICS if name in present]
    return usual + sorted(present - set(usual))


def _titled(metric: str, larger: bool | None = None) -> str:
    if larger is None and metric in formatting.METRICS:
        larger = formatting.is_larger_better(metric)
    return formatting.metric_title(metric) + ("" if larger is None else " ↑" if larger else " ↓")


def _number(value: object) -> float | None:
    return None if not isinstance(value, float | int) or math.isnan(value) else float(value)


def _mean(values: Sequence[object]) -> float | None:
    numbers = [number for value in values if (number := _number(value)) is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _clipped(text: str, number: bool = False) -> Cell:
    return Cell(text, number) if len(text) <= _MAX_LABEL else Cell(shortened(text, _MAX_LABEL), number, text)


def _widths(table: Board) -> list[int]:
    columns = zip(table.header, *table.lines, strict=True)
    return [max(len(cell.text) for cell in column) for column in columns]


def _fitted(table: Board, width: int) -> Board:
    sizes = _widths(table)
    count = len(sizes)
    while count > 5 and sum(sizes[:count]) + 2 * (count - 1) > width:
        count -= 1
    lines = [cells[:count] for cells in table.lines]
    return Board(table.header[:count], lines, table.ids, table.blocks, hidden=len(sizes) - count)


def _line(cells: Sequence[Cell], widths: Sequence[int]) -> str:
    padded = (
        cell.text.rjust(size) if cell.number else cell.text.ljust(size)
        for cell, size in zip(cells, widths, strict=True)
    )
    return "  ".join(padded)
