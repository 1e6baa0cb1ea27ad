"""Keeps the process running when nobody reads its standard output and error, or when they are closed."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Literal

_GONE = (errno.EPIPE, errno.EIO)  # the reader ended, as `| head` does; the terminal was closed

Name = Literal["stdout", "stderr"]


class _Output(io.FileIO):
    """A standard stream whose writes never fail. After an error, its output is discarded.

    Attributes:
        trouble: the error, if it should be reported; None if only the reader ended.
    """

    trouble: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _GONE:
                self.trouble = error
            _discard(self.fileno())
            return memoryview(content).nbytes


def keep_output_open() -> None:
    """Keeps the process running when its output cannot be written.

    After the first error, the output of this process and of its child processes is discarded. If a stream was closed at
    the start, its output is discarded from the beginning; otherwise the next opened file would get its descriptor, and
    libraries would print into that file.

    A character that the encoding of the output does not have, such as one of a file's name on a terminal for ASCII, is
    written as `\\xe9`.

    Replaced streams, as in pytest, are not changed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)
    _keep("stdout", 1)
    _keep("stderr", 2)


def flush_output() -> dict[Name, OSError]:
    """Writes the buffers; returns the errors so far. Call it last, instead of Python's own flush at exit."""
    troubles: dict[Name, OSError] = {}
    names: tuple[Name, ...] = ("stdout", "stderr")
    for name in names:
        stream = getattr(sys, name)
        if isinstance(raw := _raw(stream), _Output):
            stream.flush()
            if raw.trouble:
                troubles[name] = raw.trouble
    return troubles


def _keep(name: Name, number: int) -> None:
    stream = getattr(sys, name)
    if stream is not getattr(sys, f"__{name}__") or isinstance(_raw(stream), _Output):
        return
    if stream is None:  # it was closed at the start, and another file may have its descriptor now
        kept = open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    else:
        raw = _Output(number, "w", closefd=False)
        kept = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),  # write_through: as Python does for `python -u`
            stream.encoding,
            "backslashreplace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
    setattr(sys, name, kept)
    setattr(sys, f"__{name}__", kept)


def _raw(stream: object) -> object:
    """The raw file of a text stream. With `python -u` there is no buffer between them."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _discard(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)
