"""A prepared store as trials read it: memory-mapped Arrow shards under a key of all that determines them.

Every file is written under a temporary name and then renamed, so a file with its final name is complete, and a
restarted preparation continues from the existing shards. Pages are mapped read-only, so all processes of a machine
share one copy. The format is in `shard_format`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from trainables.common.errors import InputError, one_line
from trainables.common.locks import locked, take
from trainables.data.stores.shard_format import (
    FORMAT,
    MANIFEST,
    NAME,
    Column,
    Shard,
    column_view,
    record_batches,
    shard_name,
)

if TYPE_CHECKING:
    from trainables.data.stores.folder import StoreFolder


_ATTEMPTS = 3  # to map a shard that was fetched, where there are no locks


class _Mapped(NamedTuple):
    """A mapped shard. `columns`: (rows, *shape) each, read-only."""

    batch: pa.RecordBatch
    columns: dict[str, np.ndarray]


class Store:
    """A store opened for reading, by any number of threads. Shards are mapped at their first use.

    Args:
        path: the store's folder.
        verify: compare the content of all shards with the manifest; otherwise their sizes only.
        source: where shards are fetched from at their first use, if `path` contains only the manifest. The processes of
            a machine fetch a shard once, and compare its content then.
        keep: with `source`, how many shards stay in `path`, and how many this process keeps mapped; the least recently
            used is dropped first. A shard mapped in another process stays readable there. 0 keeps all.

    Attributes:
        starts: the first row of every shard, and the number of rows.

    Raises:
        InputError: here or at a shard's first use: no manifest, another format, or files that do not match the
            manifest; names the folder and says to delete it. Or the source cannot be reached.
    """

    def __init__(
        self, path: Path | str, verify: bool = False, source: StoreFolder | None = None, keep: int = 0
    ) -> None:
        self.path = Path(path)
        self._source, self._keep = source, keep
        self._mapped: dict[int, _Mapped] = {}  # least recently used first, if only some are kept
        self._mapping = threading.Lock()
        with self._blaming():
            self._hold()
            self._open(verify)

    def _hold(self) -> None:
        """Keeps a shared lock on the manifest, which tells other processes that the store is in use."""
        file = os.open(self.path / MANIFEST, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        with suppress(OSError):  # it is only read; a lock keeps others from deleting it meanwhile
            take(file, shared=True, wait=True)

    def _open(self, verify: bool) -> None:
        self.manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
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
            self._shard(0)  # finds a wrong schema now, not in a later step

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
        return InputError(f"{self.path}: damaged store, {what}; delete the folder to prepare it again")

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        """Turns any error of reading damaged files into an `InputError`."""
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # Arrow's errors are ValueErrors
            raise self._damaged(f"it cannot be read ({type(error).__name__}: {one_line(error)})") from None

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
        (batch,) = record_batches(pa.memory_map(str(self._file(number)), "r"))
        if batch.num_rows != self._shards[number].rows:
            raise self._damaged(f"{shard_name(number)} has {batch.num_rows} rows, expected {self._shards[number].rows}")
        return _Mapped(batch, {name: column_view(batch, name, column) for name, column in self.columns.items()})

    def _map_fetched(self, number: int) -> _Mapped:
        """Maps a shard, fetching it from the source if it is not here, and makes room for it."""
        file = self._file(number)
        with self._lock(file) as alone:
            for attempt in range(1 if alone else _ATTEMPTS):
                if not file.exists() or file.stat().st_size != self._shards[number].bytes:
                    assert self._source is not None
                    self._source.fetch(file.name, self._shards[number].sha256, file)
                now = time.time_ns()
                try:
                    os.utime(file, ns=(now, now))  # marks it as in use for the other processes of this machine
                    mapped = self._map(number)
                    break
                except FileNotFoundError:  # without locks, another process may have dropped it meanwhile
                    if alone or attempt == _ATTEMPTS - 1:
                        raise
        if self._keep:
            with self._lock(self.path / "room"):
                here = sorted(self.path.glob("shard-*.arrow"), key=lambda shard: shard.stat().st_mtime_ns)
                for oldest in here[: -self._keep]:
                    with self._lock(oldest):
                        oldest.unlink(missing_ok=True)
        return mapped

    def _lock(self, file: Path) -> AbstractContextManager[bool]:
        return locked(file.with_name(f".{file.name}.lock"))

    @property
    def names(self) -> list[str]:
        """The name of every row; empty if rows have none."""
        batches = [self._shard(number).batch for number in range(len(self._shards))]
        return [name for b in batches if NAME in b.schema.names for name in b.column(NAME).to_pylist()]

    @property
    def rejected(self) -> dict[str, str]:
        """Photograph -> the reason why its rows are missing."""
        return {name: reason for shard in self._shards for name, reason in shard.rejected.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """All rows of a column, (rows, *shape); without a copy if the store has one shard."""
        views = [self._shard(number).columns[name] for number in range(len(self._shards))]
        return views[0] if len(views) == 1 else np.concatenate(views)

    def rows(
        self, name: str, indices: np.ndarray, draws: np.ndarray | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Copies of rows, (len(indices), *shape), in the column's type, read in the order in which they are stored.

        With `draws`, entry `draws[i]` of row `indices[i]`.

        Args:
            out: an array of that shape and type to fill and return: allocating costs more than the copy.

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
        whole = np.dtype((np.void, math.prod(shape) * out.itemsize))  # NumPy is fastest if an entry is one element
        target = out.reshape(-1).view(whole)
        for start, end in pairwise(np.flatnonzero(np.diff(shards, prepend=-1, append=-1))):
            source = self._shard(int(shards[start])).columns[name].reshape(-1).view(whole)
            target[places[start:end]] = source[entries[start:end]]
        return out

    def fetch(self, shards: Iterable[int]) -> None:
        """Maps these shards, in this order, so that `rows` finds them."""
        for number in shards:
            self._shard(int(number))


def _check_range(indices: np.ndarray, count: int, what: str) -> None:
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise IndexError(f"{what}s {indices.min()} to {indices.max()} of {count}")
