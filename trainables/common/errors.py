"""The error for invalid input: one line without a traceback; the command line exits with status 2."""

from __future__ import annotations

import re
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


def one_line(text: object) -> str:
    """An exception or a text of other software as a part of a message: no line breaks or colours of a terminal, at most
    300 characters.

    A longer text keeps its start and its end: the cause may be at either. An exception without a text is named by its
    type.
    """
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", str(text))
    line = " ".join(plain.split()) or (type(text).__name__ if isinstance(text, BaseException) else "")
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
