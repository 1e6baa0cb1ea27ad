"""Standard output and error that never end the work: not when their reader leaves, not when they are closed."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Literal

_GONE = (errno.EPIPE, errno.EIO)  # `| head` has read enough; the terminal was closed

Name = Literal["stdout", "stderr"]


class _Output(io.FileIO):
    """A standard stream that takes everything, also when nobody reads it any more.

    Attributes:
        trouble: why the rest was not written, if that is worth telling; a reader that left is not.
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
    """Lets the process go on when its output cannot be written.

    From the first failure on, what is printed is discarded, by this process and by those it starts. A stream that was
    closed when the process started is discarded from the beginning; otherwise the next file that is opened would take
    its number, and what other libraries print would end in that file.

    Streams that somebody has replaced, as pytest does, are left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)
    _keep("stdout", 1)
    _keep("stderr", 2)


def flush_output() -> dict[Name, OSError]:
    """Writes what is buffered; returns what went wrong so far. Call it last, in place of Python's own flush at exit."""
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
    if stream is None:  # it was closed when Python started, and its number may be another file's by now
        kept = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    else:
        raw = _Output(number, "w", closefd=False)
        kept = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),  # `python -u`, as Python
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
    setattr(sys, name, kept)
    setattr(sys, f"__{name}__", kept)


def _raw(stream: object) -> object:
    """The file below a text stream; with `python -u` there is no buffer between them."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _discard(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)
