"""The tables of one sweep: results of trials and controls, all reports, values per image.

    leaderboard.parquet (+ .csv)   one row per trial and per control
    history.parquet                one row per report
    per_image.parquet              one row per (trial, split, image), at the newest step of the trial

They are derived from the run's record of events (`sweeps.recording.events`), and made again from it if they are damaged
or missing. A run of version 0.1 has no such record; its tables are read instead, once.

Every write rewrites a whole table under a temporary name and renames it. Another process therefore reads either the
old or the new table, if it opens the file once as `read_rows` does (`pyarrow.parquet.read_table` opens a path twice
and can read a mixture). There must be only one writer; this module does not lock the folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweeps.recording.columns import to_arrow
from sweeps.recording.driver_time import DRIVERS, DriverTime
from sweeps.recording.events import EVENTS, Event, EventLog, Unpacker
from sweeps.recording.image_values import ImageValues, by_measurement, image_event
from sweeps.trial_config import CONFIRMATION, TRIAL
from trainables.common.errors import InputError, one_line
from trainables.common.parquet import TooLarge, read_table
from trainables.common.paths import replace_file

TableRow = dict[str, Any]

LEADERBOARD, HISTORY, PER_IMAGE = "leaderboard.parquet", "history.parquet", "per_image.parquet"
KINDS = (TRIAL, CONFIRMATION, "control")
_MOST_PADDING = 100
_WRITING_SHARE = 0.02  # of a sweep's time, for the tables
STATUSES = ("running", "finished", "stopped", "failed", "interrupted", "control")
OUT_OF_TIME = "out_of_time"
"""Column of the leaderboard: whether a stopped trial was stopped because the time budget was over, and not by ASHA."""

ASKED_AGAIN = "asked_again"
"""Column of the leaderboard: whether a trial had finished and was trained again because its checkpoints were lost."""

# Ids are names of folders; a run from somebody else must not lead out of its own.
_ID = re.compile(r"\w[\w.-]*")

_LEADERBOARD_COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "kind": pa.string(),
    "label": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "steps": pa.int64(),
    "seed": pa.int64(),
    "wall_seconds": pa.float64(),
    "step_seconds": pa.float64(),
    "busy_seconds": pa.float64(),
    "trained_parameters": pa.int64(),
    "checkpoint": pa.string(),
}
_HISTORY_COLUMNS = {"id": pa.string(), "step": pa.int64(), "wall_seconds": pa.float64()}
_DEFAULTS: TableRow = {
    "kind": TRIAL,
    "label": "",
    "status": "running",
    "error": "",
    "steps": 0,
    "checkpoint": "",
}


def has_ended(row: Mapping[str, Any], confirmed: bool = False, confirm_steps: int = 0) -> bool:
    """Whether a trial never runs again. One whose process died or whose GPU had too little memory is tried again by the
    next `--resume`; a diverged one would diverge again. One that the time budget stopped continues if there is time.

    Args:
        confirmed: whether the confirmation has begun. It has chosen the leaders of the search, so none may join them;
            one that was asked for again was among those from which they were chosen.
        confirm_steps: training steps of its trials, which a resumed sweep may have raised.
    """
    if row["status"] == "finished" and confirming([row]) and (row.get("steps") or confirm_steps) < confirm_steps:
        return False
    final = bool(row.get("diverged")) or (confirmed and not confirming([row]) and not row.get(ASKED_AGAIN))
    short = row["status"] == "failed" or (row["status"] == "stopped" and bool(row.get(OUT_OF_TIME)))
    return final if short else row["status"] in ("finished", "stopped")


def confirming(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether trials of the confirmation are among these rows of the leaderboard."""
    return any(row.get("kind") == CONFIRMATION for row in rows)


def read_rows(path: str | os.PathLike[str]) -> list[TableRow]:
    """The rows of a table, also while a sweep is writing it; empty if the file does not exist.

    Raises:
        ValueError: the file exists but cannot be read, or would fill the memory; the message names it.
    """
    try:
        return read_table(path).to_pylist()
    except FileNotFoundError:
        return []
    except (pa.ArrowException, TooLarge, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet table ({error}); remove or restore it") from error


class RunTables:
    """The three tables of a run folder, in memory as rows and on disk as Parquet.

    Rows are dictionaries. A column is created by the first row that has it and is null in the others. Values
    may be Python or NumPy scalars, booleans, None, tuples, lists and dictionaries. Some are converted for Parquet:

    - a tuple, list, array or dictionary becomes its JSON text;
    - a column of integers and floats becomes floats;
    - a column of other mixed types (a number in one trial, a string in another) becomes strings.

    Args:
        folder: the run folder; created by the first write.
        flush_seconds: shortest time in seconds between writes of `flush`, unless forced. If a write takes longer than
            two percent of it, the time grows: a table of thousands of trials must not be written at each report.

    Example:
        >>> tables = RunTables(folder).load()
        >>> tables.upsert_trial({"id": "t000", "config/sinsr.inversion": 0.1, "seed": 0})
        >>> tables.add_report({"id": "t000", "step": 100, "val/psnr": 24.1, "loss/distillation": 0.03})
        >>> tables.flush(force=True)
        True
    """

    def __init__(self, folder: str | os.PathLike[str], flush_seconds: float = 0.2) -> None:
        self.folder = Path(folder)
        self.flush_seconds = flush_seconds
        self._trials: dict[str, TableRow] = {}
        self._reports: dict[str, dict[int, TableRow]] = {}
        self._images = ImageValues()
        self.drivers = DriverTime()
        self.notes: list[str] = []
        """What was damaged when the tables were read, one line each."""
        self._log = EventLog(self.folder)
        self._pending: list[Event] = []
        self._log_whole = True
        self._dirty: set[str] = set()
        self._last_write, self._write_took = -math.inf, 0.0

    @property
    def leaderboard(self) -> list[TableRow]:
        """One row per trial and per control, in the order they were added."""
        return list(self._trials.values())

    @property
    def history(self) -> list[TableRow]:
        """One row per report, sorted by trial, then by step."""
        return [row for id in sorted(self._reports) for row in self.reports_of(id)]

    def has_trial(self, id: str) -> bool:
        return id in self._trials

    def trial(self, id: str) -> TableRow:
        """The row of one trial or control."""
        return self._trials[id]

    def has_report(self, id: str, step: int) -> bool:
        return step in self._reports.get(id, {})

    def reports_of(self, id: str) -> list[TableRow]:
        """The reports of one trial, sorted by step."""
        reports = self._reports.get(id, {})
        return [reports[step] for step in sorted(reports)]

    @property
    def per_image(self) -> list[TableRow]:
        """One row per (trial, split, image), at the trial's newest step."""
        return self._images.rows()

    def has_images(self, id: str, split: str, step: int = 0) -> bool:
        """Whether the values of a trial's or control's images are those of this step, or of a later one."""
        return self._images.step_of(id, split) >= step

    def images_of(self, ids: Container[str]) -> list[TableRow]:
        """The rows of `per_image` of these trials and controls."""
        return self._images.rows(ids)

    def load(self) -> RunTables:
        """Reads the run's events, to continue its tables; a folder without events and tables is an empty run.

        Raises:
            ValueError: there are no events and a table cannot be read; the message names the file.
        """
        self._trials, self._reports, self._images, self.drivers = {}, {}, ImageValues(), DriverTime()
        self._pending, self.notes = [], []
        lines, damaged, unpacker = 0, 0, Unpacker()
        for event in self._log.read():
            lines += 1
            try:
                if event is None:
                    raise ValueError("damaged")
                self._apply(event, unpacker)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, zlib.error):
                damaged += 1  # or a whole line of another program
        self._log_whole = lines > 0 and not damaged
        if damaged:
            found = "1 damaged line was" if damaged == 1 else f"{damaged} damaged lines were"
            self.notes.append(f"{EVENTS}: {found} dropped")
        without_start = any(row.get("kind") != "control" and "seed" not in row for row in self._trials.values())
        if not self._log_whole or without_start:  # a line that is missing as a whole is no damaged one
            self._complete_from_files(required=not lines - damaged)
        self._complete_columns()
        # Also without a change: a table may be damaged or missing, or older than the events.
        self._dirty = {"leaderboard", "history", "per_image"} if self._trials else set()
        return self

    def _apply(self, event: Event, unpacker: Unpacker) -> None:
        table, content = event["table"], event["row"]
        id = unpacker.constant(content["id"]) if table == "images" else content["id"]
        if not _ID.fullmatch(id):
            raise ValueError(f"{id!r} cannot be the name of a folder")
        if table == "images":
            self._images.put_event(id, content, unpacker)
        else:
            {"trials": self._put_trial, "reports": self._put_report, DRIVERS: self.drivers.put}[table](content)

    def _complete_from_files(self, required: bool) -> None:
        """Adds rows that only the files of the tables have."""
        ended = ("finished", "stopped", "failed")
        merged: dict[str, TableRow] = {}
        for row in self._rows_of_file(LEADERBOARD, required):
            known = self._trials.get(row["id"], {})
            # The lost line may have had the end, or the last report before it.
            newer = known.get("status") not in ended or (row["steps"] or 0) > (known.get("steps") or 0)
            if row["status"] in ended and newer:
                merged[row["id"]] = {
                    **row,
                    **known,
                    **{name: value for name, value in row.items() if value is not None},
                }
            else:
                merged[row["id"]] = {**row, **known}
        self._trials = {**merged, **{id: row for id, row in self._trials.items() if id not in merged}}
        for row in self._rows_of_file(HISTORY, required):
            self._reports.setdefault(row["id"], {}).setdefault(row["step"], row)
        for measured in by_measurement(self._rows_of_file(PER_IMAGE, required)):
            self._images.put(*measured, replaces=False)

    def _complete_columns(self) -> None:
        """Gives every row all columns of its table, as a row of a file has them."""
        of_trials = dict.fromkeys(_LEADERBOARD_COLUMNS) | _DEFAULTS
        for tables, fixed in (([self._trials], of_trials), (self._reports.values(), dict.fromkeys(_HISTORY_COLUMNS))):
            names = fixed | dict.fromkeys(
                name for table in tables for row in table.values() for name in row if name not in fixed
            )
            rows, cells = sum(map(len, tables)), sum(len(row) for table in tables for row in table.values())
            if rows * len(names) > _MOST_PADDING * (cells + 10_000):  # a run from a stranger
                raise InputError(f"{self.folder}: its tables have {len(names):,} columns, of which a row has few")
            for table in tables:
                for key, row in table.items():
                    table[key] = {**names, **row}  # type: ignore[index]  # keys of two types

    def _rows_of_file(self, name: str, required: bool) -> list[TableRow]:
        try:
            return [row for row in read_rows(self.folder / name) if _ID.fullmatch(row["id"])]
        except InputError as error:
            if required:
                raise
            self.notes.append(one_line(error))
            return []

    def upsert_trial(self, row: Mapping[str, Any]) -> None:
        """Add the trial or control `row["id"]`, or update the given fields if it exists.

        Raises:
            ValueError: no id, or a kind or status that is not one of `KINDS` and `STATUSES`.
        """
        row = _plain(row, "id")
        for name, accepted in (("kind", KINDS), ("status", STATUSES)):
            if name in row and row[name] not in accepted:
                raise ValueError(f"{row['id']}: {name} {row[name]!r} is not one of {', '.join(accepted)}")
        self._put_trial(row if self.has_trial(row["id"]) else {**_DEFAULTS, **row})
        self._pending.append({"table": "trials", "row": row})
        self._dirty.add("leaderboard")

    def _put_trial(self, row: TableRow) -> None:
        """Without defaults: they must not stand for what a damaged line said, which the files may have."""
        self._trials[row["id"]] = {**self._trials.get(row["id"], {}), **row}

    def add_report(self, row: Mapping[str, Any]) -> None:
        """Add one report. A second report of the same (id, step), after a restart, replaces the first.

        Raises:
            ValueError: no id or no step.
        """
        row = _plain(row, "id", "step")
        self._put_report(row)
        self._pending.append({"table": "reports", "row": row})
        self._dirty.add("history")

    def _put_report(self, row: TableRow) -> None:
        self._reports.setdefault(row["id"], {})[row["step"]] = row

    def add_images(
        self, id: str, split: str, step: int, images: Sequence[str], columns: Mapping[str, NDArray[Any] | Sequence[Any]]
    ) -> None:
        """Add the images of a validation or, with `split` "test", of the test. Only the newest step of a trial is kept:
        images of an older step are dropped, values of the same step replace those of the same image.

        Args:
            columns: metric -> one value per image.
        """
        if not images:
            return
        self._images.put(id, split, step, images, columns)
        self._pending.append({"table": "images", "row": image_event(id, split, step, images, columns)})
        self._dirty.add("per_image")

    def add_per_image(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """`add_images` for rows of any trials.

        Raises:
            ValueError: a row without id, step or image.
        """
        for measured in by_measurement(_plain(row, "id", "step", "image") for row in rows):
            self.add_images(*measured)

    def commit(self, force: bool = False) -> None:
        """Writes the changes to the run's events, and waits until they are on the disk. `flush` does this first. The
        seconds of the driver go with them; without changes they are written once a minute, or if forced.

        Raises:
            OSError: for example, because the disk is full. The changes stay pending.
        """
        self._pending += self.drivers.events(force or bool(self._pending))
        if not self._pending:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._log_whole:
            self._log.append(self._pending)
        else:  # a run of version 0.1, or damaged lines: the file is made again with what is known
            self._log.replace(self._everything())
            self._log_whole = True
        self._pending.clear()

    def _everything(self) -> list[Event]:
        return [
            *({"table": "trials", "row": row} for row in self.leaderboard),
            *({"table": "reports", "row": row} for row in self.history),
            *({"table": "images", "row": image_event(*measured)} for measured in self._images),
            *self.drivers.everything(),
        ]

    def flush(self, force: bool = False) -> bool:
        """Commits all changes, then writes the changed tables, if forced or if the last write is long enough ago: see
        `flush_seconds`.

        Returns:
            Whether everything is written.
        """
        self.commit(force)
        if not self._dirty:
            return True
        started = time.monotonic()
        if not force and started - self._last_write < max(self.flush_seconds, self._write_took / _WRITING_SHARE):
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        if "leaderboard" in self._dirty:
            table = to_arrow(self.leaderboard, _LEADERBOARD_COLUMNS)
            replace_file(self.folder / LEADERBOARD, lambda path: pq.write_table(table, path))
            replace_file(self.folder / "leaderboard.csv", lambda path: pyarrow.csv.write_csv(table, path))
        if "history" in self._dirty:
            history = to_arrow(self.history, _HISTORY_COLUMNS)
            replace_file(self.folder / HISTORY, lambda path: pq.write_table(history, path))
        if "per_image" in self._dirty:
            replace_file(self.folder / PER_IMAGE, self._images.write)
        self._dirty.clear()
        self._last_write = time.monotonic()
        self._write_took = self._last_write - started
        return True


def _plain(row: Mapping[str, Any], *required: str) -> TableRow:
    """`row` with Python scalars; tuples, lists, arrays and dictionaries as JSON text."""
    for name in required:
        if row.get(name) is None:
            raise ValueError(f"row {dict(row)!r} has no {name!r}; required: {', '.join(required)}")
    plain = {name: plain_value(value) for name, value in row.items()}
    if "step" in required:
        plain["step"] = int(row["step"])
    return plain


def plain_value(value: Any) -> bool | int | float | str | None:
    """A value as a Python scalar. NumPy scalars are converted; tuples, lists, arrays and dictionaries
    become JSON text; other types become their `str`.

    >>> plain_value((64, 128)), plain_value(None), plain_value(True)
    ('[64, 128]', None, True)
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, tuple | list | Mapping):
        return json.dumps(value, default=lambda part: part.item() if isinstance(part, np.generic) else str(part))
    return str(value)
