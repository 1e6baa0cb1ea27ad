"""The prepared store: fixed-size tensors in memory-mapped Arrow shards, keyed by all that determined them.

A store is a folder `<kind>-<key hash>/` of `shard-00000.arrow`, ... and a `manifest.json`, which is written last: a
folder without one is being made, or was cut off, and is never read. Every file comes under a temporary name and is
renamed, so what has its name is whole, and a preparation that is started again goes on from the shards that are there.
Pages are mapped read-only: all processes of a machine share one copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock

from trainables.common.errors import InputError

if TYPE_CHECKING:
    from trainables.data.stores.folder import StoreFolder

FORMAT = 2
MANIFEST = "manifest.json"
NAME = "name"
"""The column of strings that tells where a row comes from; only pairs have it."""
SHARD_BYTES = 64 * 2**20
_SMALLEST_SHARD, _SHARDS = 16, 256  # rows; shards that a store is cut into before they grow
_REJECTED = b"rejected"


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


@dataclass(frozen=True)
class Shard:
    """What a manifest says of one shard. `rejected`: photograph -> why its rows are missing here."""

    rows: int
    bytes: int
    sha256: str
    rejected: Mapping[str, str]


def key_hash(key: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the key's canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def store_name(kind: str, key: Mapping[str, Any]) -> str:
    return f"{kind}-{key_hash(key)}"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def shard_numbers(files: Iterable[str]) -> list[int]:
    """Of those of `files` that are shards."""
    return [int(found[1]) for file in files if (found := re.fullmatch(r"shard-(\d{5,})\.arrow", file))]


def rows_per_shard(rows: int, bytes_per_row: int) -> int:
    """Rows of every shard but the last: few enough that all cores have work from the start and little is lost when it
    is cut off, and never over 64 MB of them."""
    wanted = max(_SMALLEST_SHARD, -(-rows // _SHARDS))
    return max(1, min(wanted, SHARD_BYTES // bytes_per_row))


def encode_shard(
    columns: Mapping[str, Column],
    values: Mapping[str, np.ndarray],
    names: Sequence[str] | None = None,
    rejected: Mapping[str, str] | None = None,
) -> pa.Buffer:
    """The bytes of a shard's file: a function of the arguments alone.

    Args:
        values: for every column an array (rows, *shape), cast to the column's type.
        names: one a row, or none of any row.
        rejected: photograph -> why its rows are missing.

    Raises:
        ValueError: rows of another shape, or values that a 16-bit float cannot hold.
    """
    fields, arrays = [], []
    for name, column in columns.items():
        rows = np.asarray(values[name])
        if rows.shape[1:] != column.shape:
            raise ValueError(f"column {name}: rows of shape {rows.shape[1:]}, expected {column.shape}")
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(rows, dtype=column.dtype)
        if column.dtype == "float16" and not np.isfinite(cast).all():
            raise ValueError(f"column {name}: a value is not finite or over 65504, the largest of 16 bits")
        fields.append((name, pa.list_(pa.from_numpy_dtype(np.dtype(column.dtype)), column.size)))
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(cast.reshape(-1)), column.size))
    if names is not None:
        fields.append((NAME, pa.string()))
        arrays.append(pa.array(names, pa.string()))
    schema = pa.schema(fields, {_REJECTED: json.dumps(dict(rejected or {}), sort_keys=True)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue()


def decode_shard(file: pa.Buffer, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """The columns in a shard's bytes, (rows, *shape), without a copy.

    Raises:
        ValueError, LookupError: not a shard with these columns.
    """
    (batch,) = _batches(pa.BufferReader(file))
    return {name: _view(batch, name, column) for name, column in columns.items()}


def describe_shard(file: pa.Buffer) -> Shard:
    """What the manifest is to say of a shard with these bytes."""
    reader = pa.ipc.open_file(pa.BufferReader(file))
    rows = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
    return Shard(rows, file.size, hashlib.sha256(file).hexdigest(), json.loads(reader.schema.metadata[_REJECTED]))


def encode_manifest(
    kind: str, key: Mapping[str, Any], columns: Mapping[str, Column], shards: Sequence[Shard], made_from: str = ""
) -> bytes:
    """The bytes of a manifest. They hold no time and no place: equal content has an equal manifest.

    Args:
        made_from: hash of the manifest of the pairs that the rows belong to; empty of pairs themselves.
    """
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "key": dict(key),
        "made_from": made_from,
        "rows": sum(shard.rows for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "columns": {name: {"dtype": c.dtype, "shape": list(c.shape)} for name, c in columns.items()},
        "shards": [
            {"rows": s.rows, "bytes": s.bytes, "sha256": s.sha256, "rejected": dict(s.rejected)} for s in shards
        ],
    }
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


class _Mapped(NamedTuple):
    """A shard in memory. `columns`: (rows, *shape) each, read-only."""

    batch: pa.RecordBatch
    columns: dict[str, np.ndarray]


class Store:
    """A store opened for reading, by any number of threads. Shards are mapped when they are first read.

    Args:
        path: the store's folder.
        verify: compare the content of all shards with the manifest; otherwise their sizes only.
        source: where shards come from when they are first read, if `path` holds the manifest alone. The processes of a
            machine fetch a shard once, and compare its content then.
        keep: with `source`, how many shards stay in `path`, and how many this process keeps mapped; the one used
            longest ago goes first. What another process has mapped stays readable there. 0 keeps all.

    Attributes:
        starts: the first row of every shard, and the number of rows.

    Raises:
        InputError: here or when a shard is first read: no manifest, another format, or files that are not what the
            manifest says; names the folder and says that deleting it makes it anew. Or a source that cannot be reached.
    """

    def __init__(
        self, path: Path | str, verify: bool = False, source: StoreFolder | None = None, keep: int = 0
    ) -> None:
        self.path = Path(path)
        self._source, self._keep = source, keep
        self._mapped: dict[int, _Mapped] = {}  # used longest ago first, where only some are kept
        self._mapping = threading.Lock()
        with self._blaming():
            self._hold()
            self._open(verify)

    def _hold(self) -> None:
        """Keeps a shared lock on the manifest, by which others know that the store is being read."""
        file = os.open(self.path / MANIFEST, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_SH)

    def _open(self, verify: bool) -> None:
        self.manifest = json.loads((self.path / MANIFEST).read_text())
        if self.manifest.get("format") != FORMAT:
            raise self._damaged(f"its format is {self.manifest.get('format')}, expected {FORMAT}")
        self.columns = {name: Column(c["dtype"], tuple(c["shape"])) for name, c in self.manifest["columns"].items()}
        self._shards = [Shard(**shard) for shard in self.manifest["shards"]]
        self.starts = np.cumsum([0, *(shard.rows for shard in self._shards)])
        if len(self) != self.manifest["rows"]:
            raise self._damaged(f"{len(self)} rows, expected {self.manifest['rows']}")
        if self._source is None:
            for number, shard in enumerate(self._shards):
                self._check(self._file(number), shard, verify)
            self._shard(0)  # a schema that does not fit is noticed here, not in a later step

    def _check(self, file: Path, shard: Shard, verify: bool) -> None:
        size = file.stat().st_size
        if size != shard.bytes:
            raise self._damaged(f"{file.name} has {size} bytes, expected {shard.bytes}")
        if verify:
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != shard.sha256:
                    raise self._damaged(f"the content of {file.name} does not match its manifest")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _file(self, number: int) -> Path:
        return self.path / shard_name(number)

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged store, {what}; delete the folder and it is prepared anew")

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        """Turns whatever reading damaged files raises into an `InputError` that says so."""
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # Arrow's are ValueErrors too
            raise self._damaged(f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from None

    def _shard(self, number: int) -> _Mapped:
        with self._mapping:
            mapped = self._mapped.pop(number, None)
            if mapped is None:
                with self._blaming():
                    mapped = self._map(number) if self._source is None else self._map_fetched(number)
            self._mapped[number] = mapped
            while 0 < self._keep < len(self._mapped):
                del self._mapped[next(iter(self._mapped))]
        return mapped

    def _map(self, number: int) -> _Mapped:
        (batch,) = _batches(pa.memory_map(str(self._file(number)), "r"))
        if batch.num_rows != self._shards[number].rows:
            raise self._damaged(f"{shard_name(number)} has {batch.num_rows} rows, expected {self._shards[number].rows}")
        return _Mapped(batch, {name: _view(batch, name, column) for name, column in self.columns.items()})

    def _map_fetched(self, number: int) -> _Mapped:
        """Maps a shard that is here or else at the source, and makes room for it."""
        file = self._file(number)
        with self._lock(file):
            if not file.exists() or file.stat().st_size != self._shards[number].bytes:
                assert self._source is not None
                self._source.fetch(file.name, self._shards[number].sha256, file)
            now = time.time_ns()
            os.utime(file, ns=(now, now))  # tells the other processes of this machine that it is in use
            mapped = self._map(number)
        if self._keep:
            with self._lock(self.path / "room"):
                here = sorted(self.path.glob("shard-*.arrow"), key=lambda shard: shard.stat().st_mtime_ns)
                for oldest in here[: -self._keep]:
                    with self._lock(oldest):
                        oldest.unlink()
        return mapped

    def _lock(self, file: Path) -> FileLock:
        return FileLock(file.with_name(f".{file.name}.lock"))

    @property
    def names(self) -> list[str]:
        """The name of every row; empty where rows have none."""
        batches = [self._shard(number).batch for number in range(len(self._shards))]
        return [name for b in batches if NAME in b.schema.names for name in b.column(NAME).to_pylist()]

    @property
    def rejected(self) -> dict[str, str]:
        """Photograph -> why rows of it are missing."""
        return {name: reason for shard in self._shards for name, reason in shard.rejected.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """All rows of a column, (rows, *shape); without a copy where the store has one shard."""
        views = [self._shard(number).columns[name] for number in range(len(self._shards))]
        return views[0] if len(views) == 1 else np.concatenate(views)

    def rows(
        self, name: str, indices: np.ndarray, draws: np.ndarray | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """(len(indices), *shape) copied from the map, in the column's type; with `draws`, entry `draws[i]` of row
        `indices[i]`. They are read in the order in which they lie on the disk.

        Args:
            out: of that shape and type, to be filled and returned: new memory costs more than the copy.

        Raises:
            IndexError: no such row or entry.
        """
        shape = self.columns[name].shape
        _check_range(indices, len(self), "row")
        places = np.argsort(indices, kind="stable")
        ascending = indices[places]
        shards = np.searchsorted(self.starts, ascending, side="right") - 1
        entries = ascending - self.starts[shards]
        if draws is not None:
            _check_range(draws, shape[0], "draw")
            entries, shape = entries * shape[0] + draws[places], shape[1:]
        if out is None:
            out = np.empty((len(indices), *shape), self.columns[name].dtype)
        whole = np.dtype((np.void, math.prod(shape) * out.itemsize))  # NumPy is fastest where an entry is one element
        target = out.reshape(-1).view(whole)
        for start, end in pairwise(np.flatnonzero(np.diff(shards, prepend=-1, append=-1))):
            source = self._shard(int(shards[start])).columns[name].reshape(-1).view(whole)
            target[places[start:end]] = source[entries[start:end]]
        return out

    def fetch(self, shards: Iterable[int]) -> None:
        """Maps these shards, in this order, for `rows` to find them here."""
        for number in shards:
            self._shard(int(number))


def _batches(source: Any) -> Iterator[pa.RecordBatch]:
    file = pa.ipc.open_file(source)
    return (file.get_batch(number) for number in range(file.num_record_batches))


def _view(batch: pa.RecordBatch, name: str, column: Column) -> np.ndarray:
    values = batch.column(name).flatten().to_numpy(zero_copy_only=True)
    return values.view(column.dtype).reshape(batch.num_rows, *column.shape)


def _check_range(indices: np.ndarray, count: int, what: str) -> None:
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise IndexError(f"{what}s {indices.min()} to {indices.max()} of {count}")
