"""The prepared store: fixed-size tensors in one memory-mapped Arrow file, keyed by all that determined them.

A store is a folder `<kind>-<key hash>/` with `data.arrow` and `manifest.json`. It is written under a temporary name
and renamed when complete, so a folder of that name is whole or was damaged later; a damaged one is refused, never
read. Pages are mapped read-only: all processes of a machine share one copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainables.errors import InputError

FORMAT = 1
DATA, MANIFEST = "data.arrow", "manifest.json"


@dataclass(frozen=True)
class Column:
    """One tensor a row: `dtype` as NumPy names it, `shape` without the row dimension."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes_per_row(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


def key_hash(key: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the key's canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def store_path(root: Path, kind: str, key: Mapping[str, Any]) -> Path:
    return root / f"{kind}-{key_hash(key)}"


def write_store(
    root: Path,
    kind: str,
    key: Mapping[str, Any],
    columns: Mapping[str, Column],
    batches: Iterable[Mapping[str, np.ndarray]],
    names: Iterable[str] = (),
) -> Path:
    """Writes a store and returns its folder. The caller holds the lock of that folder, see `prepare`.

    Args:
        batches: rows in order; every batch maps each column to an array (rows, *shape).
        names: one for each row, kept in the manifest, or none; read after the last batch.
    """
    final = store_path(root, kind, key)
    working = root / f".{final.name}.partial"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    try:
        rows = _write_rows(working / DATA, columns, batches)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "key": dict(key),
        "rows": rows,
        "bytes": (working / DATA).stat().st_size,
        "sha256": _sha256(working / DATA),
        "columns": {name: {"dtype": c.dtype, "shape": list(c.shape)} for name, c in columns.items()},
        "names": list(names),
    }
    (working / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    os.rename(working, final)
    return final


def _write_rows(path: Path, columns: Mapping[str, Column], batches: Iterable[Mapping[str, np.ndarray]]) -> int:
    """Writes all batches into one Arrow file; returns the number of rows."""
    schema = pa.schema(
        [(name, pa.list_(pa.from_numpy_dtype(np.dtype(c.dtype)), c.size)) for name, c in columns.items()]
    )
    rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            arrays = []
            for name, column in columns.items():
                values = np.ascontiguousarray(batch[name], dtype=column.dtype)
                if values.shape[1:] != column.shape:
                    raise ValueError(f"column {name}: rows of shape {values.shape[1:]}, expected {column.shape}")
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), column.size))
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            rows += len(arrays[0])
    return rows


class Store:
    """A store opened for reading. `store[name]` is (rows, *shape), read-only and not copied.

    Raises:
        InputError: no manifest, another format, or a file that is not what the manifest says; names the folder and
            says that deleting it makes it anew.
    """

    def __init__(self, path: Path | str, verify: bool = False) -> None:
        self.path = Path(path)
        try:
            self._open(verify)
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # Arrow's are ValueErrors too
            raise self._damaged(f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from None

    def _open(self, verify: bool) -> None:
        self.manifest = json.loads((self.path / MANIFEST).read_text())
        if self.manifest.get("format") != FORMAT:
            raise self._damaged(f"its format is {self.manifest.get('format')}, expected {FORMAT}")
        size = (self.path / DATA).stat().st_size
        if size != self.manifest["bytes"]:
            raise self._damaged(f"{DATA} has {size} bytes, expected {self.manifest['bytes']}")
        if verify and _sha256(self.path / DATA) != self.manifest["sha256"]:
            raise self._damaged(f"the content of {DATA} does not match its manifest")
        self.names: list[str] = self.manifest["names"]
        self.columns = {name: Column(c["dtype"], tuple(c["shape"])) for name, c in self.manifest["columns"].items()}
        table = pa.ipc.open_file(pa.memory_map(str(self.path / DATA), "r"))
        parts = [table.get_batch(i) for i in range(table.num_record_batches)]
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        if len(self) != self.manifest["rows"]:
            raise self._damaged(f"{len(self)} rows, expected {self.manifest['rows']}")
        self._views = {name: [self._view(part, name) for part in parts] for name in self.columns}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged store, {what}; delete the folder and it is prepared anew")

    def _view(self, part: pa.RecordBatch, name: str) -> np.ndarray:
        values = part.column(name).flatten().to_numpy(zero_copy_only=True)
        return values.reshape(part.num_rows, *self.columns[name].shape)

    def __getitem__(self, name: str) -> np.ndarray:
        """All rows of a column; without a copy where the file has one batch of them."""
        views = self._views[name]
        return views[0] if len(views) == 1 else np.concatenate(views)

    def rows(self, name: str, indices: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """(len(indices), *shape) copied from the map; with `draws`, entry `draws[i]` of row `indices[i]`."""
        parts = np.searchsorted(self._starts, indices, side="right") - 1
        within = indices - self._starts[parts]
        shape = self.columns[name].shape[1 if draws is not None else 0 :]
        result = np.empty((len(indices), *shape), self.columns[name].dtype)
        for part in np.unique(parts):
            chosen = parts == part
            select = (within[chosen],) if draws is None else (within[chosen], draws[chosen])
            result[chosen] = self._views[name][part][select]
        return result


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
