"""The prepared stores below a local root: what lies there, what it takes, when it was last used, and its removal."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from trainables.data.store import MANIFEST
from trainables.errors import InputError

KINDS = ("pairs", "latents", "targets", "restored")
DAY = 24 * 3600.0
_USED = ".used"


@dataclass(frozen=True)
class Shelved:
    """A store's folder. `rows` and `complete`: by its manifest. `bytes`: on the disk. `used`: POSIX time."""

    path: Path
    rows: int
    complete: bool
    bytes: int
    used: float

    @property
    def days(self) -> float:
        """Since it was last used."""
        return (time.time() - self.used) / DAY


def stores_below(root: Path) -> list[Shelved]:
    """All stores directly below a root, those of interrupted preparations too, in the order of their names.

    Raises:
        InputError: no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one with prepared stores, such as results/store")
    return [_look(path) for path in sorted(root.iterdir()) if path.is_dir() and path.name.split("-")[0] in KINDS]


def _look(path: Path) -> Shelved:
    rows, complete = 0, False
    with suppress(OSError, ValueError, LookupError):
        rows, complete = int(json.loads((path / MANIFEST).read_text())["rows"]), True
    stats = [file.stat() for file in path.iterdir()]
    used = max((stat.st_mtime for stat in stats), default=path.stat().st_mtime)
    return Shelved(path, rows, complete, sum(stat.st_size for stat in stats), used)


def mark_used(path: Path) -> None:
    """Notes in a store's folder that it was used now."""
    with suppress(OSError):  # a folder of another user's may be read, and is not ours to prune
        (path / _USED).touch()


def to_prune(stores: Sequence[Shelved], older_than_days: float | None, keep_bytes: float | None) -> list[Shelved]:
    """Those last used longer ago than `older_than_days`; and of the others, the longest unused ones until all that stay
    take no more than `keep_bytes` together."""
    oldest_first = sorted(stores, key=lambda store: store.used)
    chosen = [store for store in oldest_first if older_than_days is not None and store.days > older_than_days]
    if keep_bytes is not None:
        left = sum(store.bytes for store in stores) - sum(store.bytes for store in chosen)
        for store in oldest_first:
            if left > keep_bytes and store not in chosen:
                chosen.append(store)
                left -= store.bytes
    return chosen


def remove(store: Shelved) -> bool:
    """Deletes a store, unless some process reads it or makes it; returns whether it did. What has it open goes on
    reading what it has mapped."""
    lock = store.path.with_name(f".{store.path.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            if _is_read(store.path / MANIFEST):
                return False
            # The manifest first: a removal that is cut off leaves an unfinished store, not a damaged one.
            (store.path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(store.path)
    except Timeout:
        return False
    lock.unlink(missing_ok=True)
    return True


def _is_read(manifest: Path) -> bool:
    """Whether a `Store` is open on it: each holds a shared lock."""
    try:
        with manifest.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
