"""Warnings about a source that is used nevertheless."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_OF_PILLOW = f"{os.sep}PIL{os.sep}"


class SourceWarning(UserWarning):
    """Images of a source that are not used: their number, and the first of them."""


@contextmanager
def shown_plainly() -> Iterator[None]:
    """For command lines: inside, a `SourceWarning` is printed as one line on standard error.

    It is printed without Python's line of code, and once, however often a source is read. Warnings of Pillow about an
    image's metadata are not printed.
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
        if _OF_PILLOW in filename:  # about metadata of an image that is used, or refused with a reason of ours
            return
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
