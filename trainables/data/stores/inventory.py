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

from trainables.common.errors import InputError
from trainables.data.stores.shard_format import MANIFEST

STORE_KINDS = ("pairs", "latents", "targets", "restored")
"""Those of `trainables.data.stages.kinds.STAGE_OF`, whose module takes seconds to import."""
DAY = 24 * 3600.0
WINDOWS = "windows"
"""The folder of a root with stores in a bucket of which some shards are here; see `trainables.data.stores.mirror`."""
_USED = ".used"
_IN_USE = "it is in use"


@dataclass(frozen=True)
class Shelved:
    """A store's folder.

    Attributes:
        rows: by its manifest; 0 where it has none.
        complete: whether all of them are here.
        window: whether it is the place of a store in a bucket whose shards are here for a while.
        bytes: on the disk.
        used: POSIX time.
    """

    path: Path
    rows: int
    complete: bool
    window: bool
    bytes: int
    used: float

    @property
    def name(self) -> str:
        """Below its root."""
        return f"{WINDOWS}/{self.path.name}" if self.window else self.path.name

    @property
    def state(self) -> str:
        if self.window:
            return f"some of {self.rows} rows"
        return f"{self.rows} rows" if self.complete else "interrupted"

    @property
    def days(self) -> float:
        """Since it was last used."""
        return (time.time() - self.used) / DAY


def stores_below(root: Path) -> list[Shelved]:
    """All stores directly below a root, those of interrupted preparations too, in the order of their names; then those
    in a bucket of which some shards are kept here.

    Raises:
        InputError: no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one with prepared stores, such as results/store")
    shelved = []
    for folder in (root, root / WINDOWS):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir() and path.name.split("-")[0] in STORE_KINDS:
                with suppress(OSError):  # removed meanwhile, or not for us to look into
                    shelved.append(_look(path, window=folder != root))
    return shelved


def _look(path: Path, window: bool) -> Shelved:
    rows, whole = 0, False
    with suppress(OSError, ValueError, LookupError):
        rows, whole = int(json.loads((path / MANIFEST).read_text())["rows"]), True
    stats = []
    for file in path.iterdir():
        with suppress(OSError):  # a temporary file that has its name now, or a shard that makes room
            stats.append(file.stat())
    used = max((stat.st_mtime for stat in stats), default=path.stat().st_mtime)
    return Shelved(path, rows, whole and not window, window, sum(stat.st_size for stat in stats), used)


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


def remove(store: Shelved) -> str:
    """Deletes a store, unless some process reads it or makes it, and returns why it did not; "" where it did."""
    try:
        # The lock's file stays: another process may wait for it while a third makes a new one.
        with FileLock(store.path.with_name(f".{store.path.name}.lock"), timeout=0):
            if not _remove_manifest(store.path / MANIFEST):
                return _IN_USE
            shutil.rmtree(store.path)
    except Timeout:
        return _IN_USE
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _remove_manifest(manifest: Path) -> bool:
    """Deletes it first, so that a removal that is cut off leaves an unfinished store, not a damaged one; returns
    whether it is gone. A `Store` that is open holds a shared lock on it, and none can be opened while it is deleted."""
    try:
        with manifest.open("r+b") as file:  # network file systems give this lock only to who may write
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            manifest.unlink()
    except FileNotFoundError:
        return True
    except PermissionError:
        raise
    except OSError:  # locked, or on a file system without locks, that cannot tell
        return False
    return True
