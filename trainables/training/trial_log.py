"""What the processes of a trial print, kept in the trial's folder.

trials/<id>/log.txt      the trial's process; of a worker group, the first worker
trials/<id>/log-<n>.txt  worker n of a group: workers on several machines cannot append to one file of a network

With results in a bucket, `bucket_log` copies them to it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from trainables.common.output import Name

LIMIT = 2**20
"""Bytes of one file. A longer one loses its older half."""
_CUT = b"---- earlier lines were removed\n"


def log_name(rank: int) -> str:
    """The name of a worker's file."""
    return f"log-{rank}.txt" if rank else "log.txt"


@contextmanager
def kept_output(folder: Path, rank: int = 0) -> Iterator[None]:
    """What this process prints inside it also goes to the end of a file: Python's output and errors, warnings,
    messages of loggers, and the traceback of an exception that leaves it.

    A file that cannot be written is given up; the trial goes on.

    Args:
        folder: the trial's folder; made if needed.
        rank: of this process among the workers of the trial.
    """
    file = _File(folder / log_name(rank))
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    file.add(f"---- {at} UTC: starts on host {socket.gethostname()}, process {os.getpid()}\n")
    names: tuple[Name, ...] = ("stdout", "stderr")
    streams = [(name, getattr(sys, name), _Copied(getattr(sys, name), file)) for name in names]
    for name, stream, copied in streams:
        _replace(name, stream, copied)
    try:
        with warnings.catch_warnings():  # a warning that an earlier trial of this process has shown is shown again
            yield
    except Exception:
        file.add(traceback.format_exc())
        raise
    finally:
        for name, stream, copied in streams:
            _replace(name, copied, stream)
        file.close()


class _File:
    """Appends to a file of limited size. Never raises."""

    def __init__(self, path: Path) -> None:
        self._path, self._number = path, -1
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def _open(self) -> None:
        # A run may come from somebody else: its link must not make us write to another file.
        self._number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)

    def add(self, text: str) -> None:
        if self._number < 0:
            return
        content = text.encode(errors="replace")[-LIMIT // 2 :]
        try:
            os.write(self._number, content)
            if os.fstat(self._number).st_size > LIMIT:
                self._cut()
        except OSError:
            self.close()

    def _cut(self) -> None:
        """Keeps the newer half, from a whole line on."""
        kept = self._path.read_bytes()[len(_CUT) - LIMIT // 2 :]
        shorter = self._path.with_name(f".{self._path.name}.tmp")
        shorter.write_bytes(_CUT + kept[kept.find(b"\n") + 1 :])
        os.replace(shorter, self._path)
        self.close()
        self._open()

    def close(self) -> None:
        number, self._number = self._number, -1
        if number >= 0:
            with suppress(OSError):
                os.close(number)


class _Copied:
    """A text stream whose text also goes to a file."""

    def __init__(self, stream: TextIO, file: _File) -> None:
        self._stream, self._file = stream, file

    def write(self, text: str) -> int:
        self._file.add(text)
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _replace(name: Name, before: object, after: object) -> None:
    """Replaces a standard stream, also in loggers: each keeps the stream that was there when it was made."""
    setattr(sys, name, after)
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(cast(TextIO, after))
