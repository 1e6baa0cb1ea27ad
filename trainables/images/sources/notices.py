"""What a person should know of a source that is used all the same."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class SourceWarning(UserWarning):
    """Images of a source that are left out: how many, and the first of them."""


@contextmanager
def shown_plainly() -> Iterator[None]:
    """For command lines: within it a `SourceWarning` is a line on standard error, without Python's line of code, and
    shown once, however often a source is looked at."""
    show, shown = warnings.showwarning, set[str]()

    def show_plainly(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, SourceWarning):
            show(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            print(message, file=file or sys.stderr)

    warnings.showwarning = show_plainly
    try:
        yield
    finally:
        warnings.showwarning = show
