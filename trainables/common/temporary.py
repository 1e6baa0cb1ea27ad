"""Folders in `TMPDIR` for what is needed for a moment only. If that disk is full, the message names it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.common.errors import CannotRun, InputError, one_line
from trainables.common.locks import held, is_held
from trainables.common.paths import is_utf8

_PREFIX = f"restoration-sweeps-{os.getuid()}-"
_MAKING_SECONDS = 60.0
_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
_NO_ROOM = 2**20  # bytes: less is left where a file of some size did not fit


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, removed at the end. Also removes those that killed processes left.

    Raises:
        CannotRun: `TMPDIR` cannot be written, is full, or is not UTF-8; also if the work inside finds it full.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise _unusable(one_line(error.strerror or error)) from None
    if not is_utf8(Path(made.name)):
        made.cleanup()
        raise CannotRun(f"TMPDIR {_root()}: not UTF-8; rename it, or choose another folder")
    with made as folder, held(Path(folder)), full_temporary_named(Path(folder)):
        for left in Path(folder).parent.glob(f"{_PREFIX}*"):
            _remove_unused(left)
        yield Path(folder)


def _remove_unused(folder: Path) -> None:
    """Removes a folder that no process holds; not a new one, which is not held yet."""
    with suppress(OSError):
        if time.time() - folder.stat().st_mtime > _MAKING_SECONDS and is_held(folder) is False:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def full_temporary_named(folder: Path | None = None) -> Iterator[None]:
    """Turns an error of the work inside that comes from a full `TMPDIR` into one that says so. Compilers, torch and
    pyarrow keep files there too, and raise their own types. Messages for the user stay, unless they name `folder`.

    Args:
        folder: one in `TMPDIR`: an error that names it is about `TMPDIR`, also where a quota, not the disk, is full.

    Raises:
        CannotRun: `TMPDIR` is full.
    """
    try:
        yield
    except Exception as error:
        said = isinstance(error, InputError | CannotRun)
        for text in _texts(error):
            reason = next((full for full in _FULL if full in text), "")
            if reason and ((folder and str(folder) in text) or (not said and _is_full())):
                raise _unusable(reason) from error
        raise


def _texts(error: BaseException | None) -> Iterator[str]:
    """The text of an error, and of those that it comes from. An error may be its own cause."""
    seen: list[BaseException] = []
    while error and error not in seen:
        yield f"{error} {os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ''}"
        seen.append(error)
        error = error.__cause__ or error.__context__  # torch hides a compiler's by `from None`


def _is_full() -> bool:
    try:
        return shutil.disk_usage(_root()).free < _NO_ROOM
    except OSError:
        return False


def _root() -> str:
    """The folder that is meant. Python takes another one where `TMPDIR` was full when it first looked."""
    given = os.environ.get("TMPDIR", "")
    if given and os.path.isdir(given):
        return given
    try:
        return tempfile.gettempdir()
    except OSError:  # none can be written
        return given or "/tmp"


def _unusable(reason: str) -> CannotRun:
    return CannotRun(f"TMPDIR {_root()}: cannot be written ({reason}); expected a writable folder with free space")
