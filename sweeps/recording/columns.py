"""The rows of a table as columns of Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

RAW, WEIGHTED = TERMS = ("loss/", "weighted/")
TABLED = ("val/", "test/", "train/", *TERMS, "speed/", "memory/", "gpu/")
"""Prefixes of the numbers of a report: columns of the history."""


def to_arrow(rows: list[dict[str, Any]], columns: Mapping[str, pa.DataType]) -> pa.Table:
    """`rows` as a table: the fixed columns, then config/*, then other columns in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row if name not in columns)
    ordered = [
        *columns,
        *(n for n in names if n.startswith("config/")),
        *(n for n in names if not n.startswith("config/")),
    ]
    return pa.table({name: _column(name, [row.get(name) for row in rows], columns.get(name)) for name in ordered})


def _column(name: str, values: list[Any], kind: pa.DataType | None) -> pa.Array:
    if kind is None and name.startswith(TABLED):
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
