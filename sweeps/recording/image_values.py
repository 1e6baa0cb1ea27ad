"""The values of every image at the newest step of each trial, in memory as columns.

A sweep of 10,000 trials with 3,000 validation images has 30 million rows: as dictionaries they would not fit.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweeps.recording.events import Unpacker, packed

VALIDATION, TEST = "validation", "test"
"""Values of the column `split`."""
_KEYS = ("id", "split", "step", "image")
_ROWS_OF_A_GROUP = 2**20
_MOST_METRICS = 100


Values: TypeAlias = NDArray[Any] | Sequence[float | None] | Any
"""One value per image: an array of NumPy or Arrow, or a list."""


class Measurement(NamedTuple):
    """One trial on the images of one split, at one step; columns are metrics."""

    id: str
    split: str
    step: int
    images: Sequence[str]
    columns: Mapping[str, Values]


def by_measurement(rows: Iterable[Mapping[str, Any]]) -> list[Measurement]:
    """Rows of the table as measurements. Version 0.1 had no split."""
    found: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["id"], row.get("split") or VALIDATION, row["step"]), []).append(row)
    measured = []
    for key, group in found.items():
        names = dict.fromkeys(name for row in group for name in row if name not in _KEYS)
        columns = {name: [row.get(name) for row in group] for name in names}
        measured.append(Measurement(*key, [row["image"] for row in group], columns))
    return measured


def image_event(id: str, split: str, step: int, images: Sequence[str], columns: Mapping[str, Values]) -> dict[str, Any]:
    """A measurement for the record of events; see `ImageValues.put_event`."""
    count = len(images)
    keys: dict[str, Sequence[Any]] = {
        "id": [id] * count,
        "split": [split] * count,
        "step": [step] * count,
        "image": list(images),
    }
    return packed(keys | {name: _floats(values) for name, values in columns.items()})


def _floats(values: Values) -> list[float | None]:
    listed = values.to_pylist() if isinstance(values, pa.Array) else np.asarray(values).tolist()
    return [None if value is None else float(value) for value in listed]


class ImageValues:
    """The newest measurement of each trial and split."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Measurement] = {}
        self._metrics: set[str] = set()
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._of.values())

    def step_of(self, id: str, split: str) -> int:
        """The step of a measurement; -1 without one."""
        known = self._of.get((id, split))
        return -1 if known is None else known.step

    def put(
        self,
        id: str,
        split: str,
        step: int,
        images: Sequence[str],
        columns: Mapping[str, Values],
        replaces: bool = True,
    ) -> None:
        """Keeps a measurement unless there is a newer one. At the same step, other images are added.

        Args:
            replaces: whether values of known images, at the same step, are replaced.

        Raises:
            ValueError: a name is not text, a value is not a number, or a column has another length than `images`.
        """
        if not all(isinstance(image, str) for image in images) or not isinstance(step, int):
            raise ValueError("images have names, and steps are whole numbers")
        arrays = {name: array for name, values in columns.items() if (array := _array(values)) is not None}
        if any(len(array) != len(images) for array in arrays.values()):
            raise ValueError(f"{len(images)} images with columns of another length")
        if len(self._metrics | arrays.keys()) > _MOST_METRICS:
            raise ValueError(f"more than {_MOST_METRICS} metrics")
        self._metrics |= arrays.keys()
        new = Measurement(id, split, step, self._shared(images), arrays)
        known = self._of.get((id, split))
        if known is None or step > known.step or (step == known.step and replaces and new.images == known.images):
            self._of[id, split] = new
        elif step == known.step:
            first, last = (known, new) if replaces else (new, known)
            self._of[id, split] = self._merged(first, last)

    def put_event(self, id: str, event: Mapping[str, Any], unpacker: Unpacker) -> None:
        """`put` for what `image_event` gave.

        Raises:
            ValueError, KeyError, TypeError: it says something else, or is larger than any measurement.
        """
        metrics = {name: column for name, column in event.items() if name not in _KEYS}
        # A column of missing values is left out: a short line must not take much memory.
        columns = {
            name: unpacker.values(column) for name, column in metrics.items() if column.get("same", 0) is not None
        }
        split = unpacker.constant(event["split"]) if "split" in event else VALIDATION
        self.put(id, split or VALIDATION, unpacker.constant(event["step"]), unpacker.values(event["image"]), columns)

    def _merged(self, first: Measurement, last: Measurement) -> Measurement:
        """Both; values of the last one count."""
        rows = {row["image"]: row for each in (first, last) for row in _rows(each, ())}
        (merged,) = by_measurement(rows.values())
        arrays = {name: _array(values) for name, values in merged.columns.items()}
        columns = {name: array for name, array in arrays.items() if array is not None}
        return merged._replace(images=self._shared(merged.images), columns=columns)

    def _shared(self, images: Sequence[str]) -> tuple[str, ...]:
        """The names as one object for all trials that have the same images."""
        return self._names.setdefault(tuple(images), tuple(images))

    def rows(self, ids: Container[str] | None = None) -> list[dict[str, Any]]:
        """One row per (trial, split, image) with all columns, of these trials or of all."""
        chosen = [each for each in self if ids is None or each.id in ids]
        names = tuple(dict.fromkeys(name for each in self for name in each.columns))
        return [row for each in chosen for row in _rows(each, names)]

    def write(self, path: Path) -> None:
        """Writes all rows as Parquet."""
        names = dict.fromkeys(name for each in self for name in each.columns)
        schema = pa.schema(
            [
                *((name, pa.int64() if name == "step" else pa.dictionary(pa.int32(), pa.string())) for name in _KEYS),
                *((name, pa.float64()) for name in names),
            ]
        )
        # Without the schema of Arrow, readers see texts instead of dictionaries.
        with pq.ParquetWriter(path, schema, store_schema=False) as writer:
            for group in self._groups():
                writer.write_table(_table(group, schema))

    def _groups(self) -> Iterator[list[Measurement]]:
        group, rows = list[Measurement](), 0
        for each in self:
            group.append(each)
            rows += len(each.images)
            if rows >= _ROWS_OF_A_GROUP:
                yield group
                group, rows = [], 0
        if group:
            yield group


def _rows(measured: Measurement, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a measurement, with at least these metrics."""
    columns = {name: _floats(values) for name, values in measured.columns.items()}
    missing = {name: None for name in metrics if name not in columns}
    keys = {"id": measured.id, "split": measured.split, "step": measured.step}
    return [
        {**keys, "image": image, **{name: of[row] for name, of in columns.items()}, **missing}
        for row, image in enumerate(measured.images)
    ]


def _array(values: Values) -> pa.Array | None:
    """Values in the smallest type that keeps them; None if all are missing."""
    array = values if isinstance(values, pa.Array) else pa.array(values, pa.float64(), from_pandas=False)
    if array.null_count == len(array):
        return None
    single = array.cast(pa.float32(), safe=False)
    return single if single.cast(array.type).equals(array) else array


def _table(group: Sequence[Measurement], schema: pa.Schema) -> pa.Table:
    counts = [len(each.images) for each in group]
    numbers: dict[str, int] = {}
    of_images = {
        images: np.array([numbers.setdefault(image, len(numbers)) for image in images], np.int32)
        for images in {each.images for each in group}
    }
    columns = [
        _repeated([each.id for each in group], counts),
        _repeated([each.split for each in group], counts),
        pa.array(np.repeat(np.array([each.step for each in group], np.int64), counts)),
        pa.DictionaryArray.from_arrays(np.concatenate([of_images[each.images] for each in group]), list(numbers)),
    ]
    for field in list(schema)[len(_KEYS) :]:
        parts: list[Any] = [each.columns.get(field.name, pa.nulls(len(each.images), field.type)) for each in group]
        columns.append(pa.concat_arrays([part.cast(field.type) for part in parts]))
    return pa.table(columns, schema=schema)


def _repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(texts), dtype=np.int32), counts), list(texts))
