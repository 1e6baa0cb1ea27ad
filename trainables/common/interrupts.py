"""An interrupt that a library swallows is still an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_KEPT: dict[int, list[int]] = {}
"""The lists of all `interrupts_kept` under way, by their `id`."""


def note_interrupt(number: int) -> None:
    """Called for a signal that ends the work."""
    for noted in _KEPT.values():
        noted.append(number)


@contextmanager
def interrupts_kept() -> Iterator[list[int]]:
    """Around work that Ctrl-C should end, whatever the work makes of it. Yields the list of interrupts so far.

    Python raises `KeyboardInterrupt` wherever the process happens to be. Ray ignores one in its callbacks, and PyTorch
    turns one in some of its C++ code into another error, such as of a file that cannot be read. So an exception that
    follows an interrupt is raised as that interrupt here. What loops for a long time should look at the list.

    Only the main thread is told of interrupts; elsewhere nothing changes. Where SIGINT is ignored, as in the background
    of a script, SIGTERM still counts: see `note_interrupt`.

    Raises:
        KeyboardInterrupt: the work raised an exception after an interrupt.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        note_interrupt(number)
        if callable(before):
            before(number, frame)

    if callable(before):  # else it is ignored
        signal.signal(signal.SIGINT, note)
    _KEPT[id(noted)] = noted
    try:
        yield noted
    except Exception as error:
        if noted:
            raise KeyboardInterrupt from error
        raise
    finally:
        del _KEPT[id(noted)]
        if callable(before):
            signal.signal(signal.SIGINT, before)
