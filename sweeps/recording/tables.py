"""The tables of one sweep: results of trials and controls, all reports, values per image.

    leaderboard.parquet (+ .csv)   one row per trial and per control
    history.parquet                one row per report
    per_image.parquet              one row per (trial, split, image), at the newest step of the trial

Every write rewrites a whole table under a temporary name and renames it. Another process therefore reads either the
old or the new table, if it opens the file once as `read_rows` does (`pyarrow.parquet.read_table` opens a path twice
and can read a mixture). There must be only one writer; this module does not lock the folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from sweeps.trial_config import CONFIRMATION, TRIAL
from trainables.common.errors import InputError

TableRow = dict[str, Any]

HISTORY = "history.parquet"
VALIDATION, TEST = "validation", "test"
"""Values of the column `split`."""
KINDS = (TRIAL, CONFIRMATION, "control")
STATUSES = ("running", "finished", "stopped", "failed", "interrupted", "control")

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
_PER_IMAGE_COLUMNS = {"id": pa.string(), "split": pa.string(), "step": pa.int64(), "image": pa.string()}
_NUMBER_PREFIXES = ("val/", "test/", "loss/", "weighted/", "train/")
_DEFAULTS: TableRow = {
    "kind": TRIAL,
    "label": "",
    "status": "running",
    "error": "",
    "steps": 0,
    "checkpoint": "",
}


def read_rows(path: str | os.PathLike[str]) -> list[TableRow]:
    """The rows of a table, also while a sweep is writing it; empty if the file does not exist.

    Raises:
        ValueError: the file exists but cannot be read; the message names it.
    """
    try:
        with open(path, "rb") as file:
            return pq.read_table(file).to_pylist()
    except FileNotFoundError:
        return []
    except (pa.ArrowException, OSError) as error:
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
        flush_seconds: shortest time in seconds between writes of `flush`, unless forced.

    Example:
        >>> tables = RunTables(folder).load()
        >>> tables.upsert_trial({"id": "t000", "config/sinsr.inversion": 0.1, "seed": 0})
        >>> tables.add_report({"id": "t000", "step": 100, "val/psnr": 24.1, "loss/distillation": 0.03})
        >>> tables.flush(force=True)
        True
    """

    def __init__(self, folder: str | os.PathLike[str], flush_seconds: float = 2.0) -> None:
        self.folder = Path(folder)
        self.flush_seconds = flush_seconds
        self._trials: dict[str, TableRow] = {}
        self._reports: dict[str, dict[int, TableRow]] = {}
        self._per_image: dict[tuple[str, str], dict[str, TableRow]] = {}  # (trial, split) -> image -> row
        self._newest: dict[tuple[str, str], int] = {}
        self._dirty: set[str] = set()
        self._last_write = -float("inf")

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

    def has_report(self, id: str, step: int) -> bool:
        return step in self._reports.get(id, {})

    def reports_of(self, id: str) -> list[TableRow]:
        """The reports of one trial, sorted by step."""
        reports = self._reports.get(id, {})
        return [reports[step] for step in sorted(reports)]

    @property
    def per_image(self) -> list[TableRow]:
        """One row per (trial, split, image), at the trial's newest step."""
        return [row for images in self._per_image.values() for row in images.values()]

    def load(self) -> RunTables:
        """Read the folder's tables, to continue them; a folder without tables is an empty run.

        Raises:
            ValueError: a table exists but cannot be read; the message names the file.
        """
        self._trials = {row["id"]: row for row in read_rows(self.folder / "leaderboard.parquet")}
        self._reports, self._per_image, self._newest = {}, {}, {}
        for row in read_rows(self.folder / HISTORY):
            self._reports.setdefault(row["id"], {})[row["step"]] = row
        for row in read_rows(self.folder / "per_image.parquet"):
            owner = row["id"], row.setdefault("split", VALIDATION)  # tables of version 0.1 have no other
            self._per_image.setdefault(owner, {})[row["image"]] = row
            self._newest[owner] = max(row["step"], self._newest.get(owner, -1))
        self._dirty.clear()
        return self

    def upsert_trial(self, row: Mapping[str, Any]) -> None:
        """Add the trial or control `row["id"]`, or update the given fields if it exists.

        Raises:
            ValueError: no id, or a kind or status that is not one of `KINDS` and `STATUSES`.
        """
        row = _plain(row, "id")
        for name, accepted in (("kind", KINDS), ("status", STATUSES)):
            if name in row and row[name] not in accepted:
                raise ValueError(f"{row['id']}: {name} {row[name]!r} is not one of {', '.join(accepted)}")
        self._trials[row["id"]] = {**_DEFAULTS, **self._trials.get(row["id"], {}), **row}
        self._dirty.add("leaderboard")

    def add_report(self, row: Mapping[str, Any]) -> None:
        """Add one report. A second report of the same (id, step), after a restart, replaces the first.

        Raises:
            ValueError: no id or no step.
        """
        row = _plain(row, "id", "step")
        self._reports.setdefault(row["id"], {})[row["step"]] = row
        self._dirty.add("history")

    def add_per_image(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the images of a validation or, with `split` "test", of the test. Only the newest step of a trial is kept:
        rows of an older step are dropped, rows of the same step replace those of the same image.

        Raises:
            ValueError: a row without id, step or image.
        """
        for row in rows:
            plain = _plain({"split": VALIDATION, **row}, "id", "step", "image")
            owner = plain["id"], plain["split"]
            images, newest = self._per_image.setdefault(owner, {}), self._newest.get(owner, -1)
            if plain["step"] > newest:
                images.clear()
                self._newest[owner] = plain["step"]
            if plain["step"] >= newest:
                images[plain["image"]] = plain
                self._dirty.add("per_image")

    def flush(self, force: bool = False) -> bool:
        """Write the changed tables, if the last write is older than `flush_seconds` or `force` is true.

        Returns:
            Whether everything is written.
        """
        if not self._dirty:
            return True
        if not force and time.monotonic() - self._last_write < self.flush_seconds:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        if "leaderboard" in self._dirty:
            table = _to_arrow(self.leaderboard, _LEADERBOARD_COLUMNS)
            _write(self.folder / "leaderboard.parquet", lambda path: pq.write_table(table, path))
            _write(self.folder / "leaderboard.csv", lambda path: pyarrow.csv.write_csv(table, path))
        if "history" in self._dirty:
            history = _to_arrow(self.history, _HISTORY_COLUMNS)
            _write(self.folder / HISTORY, lambda path: pq.write_table(history, path))
        if "per_image" in self._dirty:
            per_image = _to_arrow(self.per_image, _PER_IMAGE_COLUMNS)
            _write(self.folder / "per_image.parquet", lambda path: pq.write_table(per_image, path))
        self._dirty.clear()
        self._last_write = time.monotonic()
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


def _to_arrow(rows: list[TableRow], columns: Mapping[str, pa.DataType]) -> pa.Table:
    """`rows` as a table: the fixed columns, then config/*, then other columns in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row if name not in columns)
    ordered = [
        *columns,
        *(n for n in names if n.startswith("config/")),
        *(n for n in names if not n.startswith("config/")),
    ]
    return pa.table({name: _column(name, [row.get(name) for row in rows], columns.get(name)) for name in ordered})


def _column(name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    if kind is None and name.startswith(_NUMBER_PREFIXES):
        kind = pa.float64()
    if kind is not None:
        return pa.array(values, kind)
    types = {type(value) for value in values if value is not None}
    if types == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    too_large = any(type(value) is int and not -(2**63) <= value < 2**63 for value in values)
    if len(types) != 1 or too_large:  # no value, or mixed types
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)
