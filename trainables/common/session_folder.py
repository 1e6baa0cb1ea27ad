"""The folder in which a local Ray keeps its sockets and logs."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.common.errors import InputError
from trainables.common.locks import held, is_held, take
from trainables.common.paths import is_utf8

SESSION_BYTES = 100e6
"""Room for Ray's logs, and for objects where /dev/shm is small."""
_PREFIX = f"sweep-{os.getuid()}-"
_RAYS = "r"
# The address of a Unix socket has at most 107 bytes; Ray's longest one adds this much to the folder.
_LONGEST = 107 - len(f"/{_RAYS}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_SHORTER = ("/tmp", "/var/tmp", "/dev/shm")
_LOCK = "lock"
_MAKING_SECONDS = 600.0


def temporary_root() -> Path:
    """The folder of temporary files, `TMPDIR`; a shorter one if Ray's sockets would not fit into their addresses.

    Raises:
        InputError: `TMPDIR` cannot be used, or is too long and no shorter folder can be used.
    """
    given = os.environ.get("TMPDIR", "")
    root = Path(given or "/tmp").absolute()
    if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
        raise InputError(f"TMPDIR {root}: not a writable folder; Ray keeps its sockets and logs there")
    if not is_utf8(root):
        raise InputError(f"TMPDIR {root}: not UTF-8; rename it, or choose another folder")
    for folder in (root, *map(Path, _SHORTER)):
        length = len(os.fsencode(folder)) + len(f"/{_PREFIX}") + 8
        if length <= _LONGEST and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise InputError(f"TMPDIR {root}: too long for the address of a Unix socket; give a folder with a shorter path")


@contextmanager
def session_folder() -> Iterator[Path]:
    """An empty folder for one Ray, removed at the end. Also removes those that killed drivers left.

    Ray lets everybody write into its folder, so it is inside one that only this user can enter. The lock that tells
    whether it is in use is in the folder itself, so it is seen by whoever sees the folder, whatever its `TMPDIR`.

    Raises:
        InputError: see `temporary_root`; or the folder cannot be made.
    """
    root = temporary_root()
    for left in root.glob(f"{_PREFIX}*"):
        _remove_unused(left)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        (folder / _RAYS).mkdir()
    except OSError as error:
        raise InputError(f"TMPDIR {root}: cannot be written ({error.strerror})") from None
    with held(folder):  # before the lock file is there, which another driver could take
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(f"TMPDIR {root}: cannot be written ({error.strerror})") from None
        take(lock)  # without locks, what a killed driver leaves here stays
        try:
            yield folder / _RAYS
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _remove_unused(folder: Path) -> None:
    """Removes the folder of a driver that has ended: the kernel released its lock.

    A folder without a lock is being made, or is what Ray's dying processes wrote after it had been removed.
    """
    with suppress(OSError):
        if is_held(folder):
            return
        if not (folder / _LOCK).exists():
            if time.time() - folder.stat().st_mtime > _MAKING_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            return
        lock = os.open(folder / _LOCK, os.O_RDWR)
        try:
            if take(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
