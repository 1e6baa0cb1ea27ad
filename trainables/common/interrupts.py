"""An interrupt that a library swallows is still an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_kept() -> Iterator[list[int]]:
    """Around work that Ctrl-C should end, whatever the work makes of it. Yields the list of interrupts so far.

    Python raises `KeyboardInterrupt` wherever the process happens to be. Ray ignores one in its callbacks, and PyTorch
    turns one in some of its C++ code into another error, such as of a file that cannot be read. So an exception that
    follows an interrupt is raised as that interrupt here. What loops for a long time should look at the list.

    Only the main thread is told of interrupts; elsewhere, and where they are ignored, nothing changes.

    Raises:
        KeyboardInterrupt: the work raised an exception after an interrupt.
    """
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    except Exception as error:
        if noted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
