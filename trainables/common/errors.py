"""The error for invalid input: one line without a traceback; the command line exits with status 2."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A setting, a path or a file that cannot be used.

    The message is one line that names the setting or file, the value and what would be accepted. The command line
    prints it as it is and exits with status 2. Any other exception is a defect and keeps its traceback.
    """

    @classmethod
    def of(cls, name: str, value: object, accepted: str) -> InputError:
        """The error for one setting: `raise InputError.of("image_size", 30, "a multiple of scale=4")`."""
        return cls(f"{name}={value!r} is not accepted: give {accepted}")


class UsageError(InputError):
    """Arguments that a command does not take.

    Attributes:
        prog: the command or subcommand, as its usage names it.
    """

    def __init__(self, message: str, prog: str) -> None:
        super().__init__(message)
        self.prog = prog


class CannotRun(RuntimeError):
    """The input is right, but this machine cannot do the work now. One line; the command line exits with status 1."""


_OF_TERMINALS = re.compile(r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)?|(\x1b\[|\x9b)[0-?]*[ -/]*[@-~]")
"""Sequences that set a terminal's title or clipboard, and those of colours and the cursor."""


def without_controls(text: str) -> str:
    """A text that a terminal only shows, such as the name of somebody else's file: control characters become `?`."""
    return "".join("?" if unicodedata.category(c) == "Cc" else c for c in text)


def one_line(text: object) -> str:
    """An exception or a text of other software as a part of a message: no line breaks, nothing that a terminal obeys,
    at most 300 characters.

    A longer text keeps its start and its end: the cause may be at either. An exception without a text is named by its
    type.
    """
    plain = _OF_TERMINALS.sub("", str(text))
    line = without_controls(" ".join(plain.split())) or (type(text).__name__ if isinstance(text, BaseException) else "")
    return line if len(line) <= 300 else f"{line[:145]} ... {line[-150:]}"


@contextmanager
def blamed_on(setting: str) -> Iterator[None]:
    """Turns a ValueError from code that does not know the settings into an InputError about `setting`."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{setting}: {error}") from None
