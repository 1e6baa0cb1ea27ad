"""A sweep that stops asks its trials for a checkpoint first: the side of a trial."""

from __future__ import annotations

import threading
from collections.abc import Callable

EVERY = 0.5
"""Seconds between two looks."""


class StopRequest:
    """Looks, in a thread of a trial's process, whether the sweep stops. A context: the thread ends with it.

    The thread itself answers for a trial that has not trained since its last checkpoint.

    Args:
        asked: whether it does.
        answer: says that the trial has written its checkpoint, or has none to write.

    Attributes:
        unsaved: whether the trial has trained since its last checkpoint. The loop says so.
    """

    def __init__(self, asked: Callable[[], bool], answer: Callable[[], None]) -> None:
        self._asked, self._answer = asked, answer
        self._heard, self._over = threading.Event(), threading.Event()
        self.unsaved = False

    def __enter__(self) -> StopRequest:
        threading.Thread(target=self._look, name="stop-request", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            if not self._asked():
                continue
            if self.unsaved:
                self._heard.set()
            else:
                self.written()
            return

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint is to be written now."""
        return self._heard.is_set() and not self._over.is_set()

    def written(self) -> None:
        """Answers; once."""
        self._over.set()
        self._answer()
