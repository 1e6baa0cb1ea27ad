"""The error for invalid input: one line without a traceback; the command line exits with status 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in a shell."""


class InputError(ValueError):
    """A setting, a path or a file that cannot be used.

    The message is one line that names the setting or file, the value and what would be accepted. The command line
    prints it as it is and exits with `exit_status`. Any other exception is a defect and keeps its traceback.
    """

    exit_status = 2

    @classmethod
    def of(cls, name: str, value: object, accepted: str) -> InputError:
        """The error for one setting: `raise InputError.of("image_size", 30, "a multiple of scale=4")`."""
        return cls(f"{name}={value!r} is not accepted: give {accepted}")


def in_one_line(text: object) -> str:
    """Text of another program as part of a message: no line breaks, at most 300 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else f"{line[:297]}..."


@contextmanager
def blamed_on(setting: str) -> Iterator[None]:
    """Turns a ValueError from code that does not know the settings into an InputError about `setting`."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{setting}: {error}") from None
