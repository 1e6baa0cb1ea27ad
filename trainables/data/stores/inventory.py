"""The inventory of prepared stores below a local root: their size, when they were last used, and their removal."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainables.common.errors import InputError
from trainables.common.locks import take
from trainables.data.stores.shard_format import MANIFEST

STORE_KINDS = ("pairs", "latents", "targets", "restored")
"""The stages of `trainables.data.stages.kinds.STAGE_OF`, repeated because that module takes seconds to import."""
DAY = 24 * 3600.0
WINDOWS = "windows"
"""Subfolder of a root for bucket stores with only some shards here; see `trainables.data.stores.mirror`."""
_USED = ".used"
_IN_USE = "it is in use"
_NO_LOCKS = "its file system has no locks, which would tell whether it is in use; delete the folder yourself"


@dataclass(frozen=True)
class Shelved:
    """A store's folder.

    Attributes:
        rows: from its manifest; 0 without one.
        complete: whether all shards are here. damaged: whether it has a manifest that cannot be read.
        window: whether it keeps some shards of a store in a bucket for a while.
        bytes: on the disk.
        used: POSIX time.
    """

    path: Path
    rows: int
    complete: bool
    damaged: bool
    window: bool
    bytes: int
    used: float

    @property
    def name(self) -> str:
        """Path below its root."""
        return f"{WINDOWS}/{self.path.name}" if self.window else self.path.name

    @property
    def state(self) -> str:
        if self.window:
            return f"some of {self.rows} rows"
        return f"{self.rows} rows" if self.complete else "damaged" if self.damaged else "interrupted"

    @property
    def days(self) -> float:
        """Days since its last use."""
        return (time.time() - self.used) / DAY


def stores_below(root: Path) -> list[Shelved]:
    """All stores directly below a root, also unfinished ones, sorted by name; then bucket stores with some shards here.

    Raises:
        InputError: no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one with prepared stores, such as results/store")
    shelved = []
    for folder in (root, root / WINDOWS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir() and path.name.split("-")[0] in STORE_KINDS:
                with suppress(OSError):  # removed meanwhile, or not readable
                    shelved.append(_look(path, window=folder != root))
    return shelved


def _look(path: Path, window: bool) -> Shelved:
    rows, whole = 0, False
    with suppress(OSError, ValueError, LookupError):
        rows, whole = int(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["rows"]), True
    stats = []
    for file in path.iterdir():
        with suppress(OSError):  # a temporary file was renamed, or a shard was deleted to make room
            stats.append(file.stat())
    used = max((stat.st_mtime for stat in stats), default=path.stat().st_mtime)
    damaged = not whole and (path / MANIFEST).exists()
    return Shelved(path, rows, whole and not window, damaged, window, sum(stat.st_size for stat in stats), used)


def mark_used(path: Path) -> None:
    """Records in a store's folder that it was used now."""
    with suppress(OSError):  # another user's folder may be readable, but we do not prune it
        (path / _USED).touch()


def to_prune(stores: Sequence[Shelved], older_than_days: float | None, keep_bytes: float | None) -> list[Shelved]:
    """The stores unused for more than `older_than_days`; and the longest unused others, until the rest fits.

    The rest fits if it takes no more than `keep_bytes` in total.
    """
    oldest_first = sorted(stores, key=lambda store: store.used)
    chosen = [store for store in oldest_first if older_than_days is not None and store.days > older_than_days]
    if keep_bytes is not None:
        left = sum(store.bytes for store in stores) - sum(store.bytes for store in chosen)
        for store in oldest_first:
            if left > keep_bytes and store not in chosen:
                chosen.append(store)
                left -= store.bytes
    return chosen


def remove(store: Shelved) -> str:
    """Deletes a store unless a process reads or makes it; returns the reason if it was not deleted, else ""."""
    try:
        # The lock file is kept: another process may wait for it while a third creates a new one.
        lock = os.open(store.path.with_name(f".{store.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            taken = take(lock)
            if taken:
                taken = _remove_manifest(store.path / MANIFEST)
            if not taken:
                return _NO_LOCKS if taken is None else _IN_USE
            shutil.rmtree(store.path)
        finally:
            os.close(lock)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _remove_manifest(manifest: Path) -> bool | None:
    """Deletes the manifest first, so that an interrupted removal leaves an unfinished store, not a damaged one.

    Returns whether it is deleted; None if nothing tells whether the store is in use. An open `Store` holds a shared
    lock on it, and no store can be opened during the removal.
    """
    try:
        with manifest.open("r+b") as file:  # network file systems lock only files opened for writing
            taken = take(file.fileno())
            if taken:
                manifest.unlink()
            return taken
    except FileNotFoundError:
        return True
