"""Progress of a preparation as a line of text: pairs done, speed and time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainables.common.units import duration

_BAR = 20


class PreparationProgress:
    """Reports at the start, before the processes start, at most every `every` seconds, and at the end.

    Speed counts from the first pairs, because processes start before them, once.

    Args:
        say: called with each line.
    """

    def __init__(self, say: Callable[[str], None], every: float = 5.0) -> None:
        self._say, self._every = say, every
        self._stage, self._began, self._said = "", 0.0, 0.0
        self._first: tuple[float, int] | None = None

    def __call__(self, stage: str, done: int, rows: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._said, self._first = stage, now, now, None
            kept = f", {done} of them kept from an interrupted preparation" if done else ""
            self._say(f"{stage}: {rows} pairs{kept}; starting processes")
            return
        if self._first is None:
            self._first = now, done
        if done < rows and now - self._said < self._every:
            return
        self._said = now
        began, before = self._first
        rate = (done - before) / (now - began) if done > before else 0.0
        speed = f", {rate:.1f} pairs/s" if rate else ""
        left = f", about {duration((rows - done) / rate)} left" if rate and done < rows else ""
        took = f", {duration(now - self._began)} in all" if done == rows else ""
        filled = _BAR * done // rows
        self._say(f"{stage}: {'█' * filled}{'░' * (_BAR - filled)} {done}/{rows}{speed}{left}{took}")
