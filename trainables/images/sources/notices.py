"""Warnings about a source that is used nevertheless."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class SourceWarning(UserWarning):
    """Images of a source that are not used: their number, and the first of them."""


@contextmanager
def shown_plainly() -> Iterator[None]:
    """For command lines: inside, a `SourceWarning` is printed as one line on standard error.

    It is printed without Python's line of code, and once, however often a source is read.
    """
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
