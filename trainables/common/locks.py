"""Locks on files, between processes; the kernel releases them when a process ends. Some file systems have none."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.common.errors import InputError

_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""Errors of file systems without locks: NFS without its lock daemon, some FUSE and Lustre mounts."""


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW  # somebody else may have put a pipe there


def take(file: int, shared: bool = False, wait: bool = False) -> bool | None:
    """Locks an open file until it is closed.

    Args:
        file: its descriptor. shared: together with other shared locks. wait: until it is free.

    Returns:
        True if it is locked now, False if another process holds it, None if its file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a shared lock on a folder in `TMPDIR`: systemd-tmpfiles deletes what is old there after days, but nothing
    in a locked folder.
    """
    file = os.open(folder, _FOLDER)
    try:
        with suppress(OSError):
            take(file, shared=True, wait=True)  # for one that asks `is_held` at this moment
        yield
    finally:
        os.close(file)


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the folder, see `held`; None where there are no locks that could tell."""
    file = os.open(folder, _FOLDER)
    try:
        taken = take(file)
        return None if taken is None else not taken
    except OSError:  # NFS locks only what can be written
        return None
    finally:
        os.close(file)


@contextmanager
def locked(path: Path, busy: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Holds the lock file `path`, which is created and kept; waits for it.

    Args:
        busy: called once if another process holds it, before the wait.

    Inside, the value tells whether it is locked. Without locks it is not: use it only where two processes at once are
    wasteful, not wrong.

    Raises:
        InputError: the file cannot be created.
    """
    foreign = False
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        try:
            file, foreign = os.open(path, os.O_RDONLY), True  # of another user: it can be locked, though not written
        except OSError:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        held = take(file)
        if held is False:
            busy()
            held = take(file, wait=True)
    except OSError as error:
        if not foreign or error.errno != errno.EBADF:  # NFS locks only files that can be written
            os.close(file)
            raise
        held = None
    try:
        yield held is True
    finally:
        os.close(file)
