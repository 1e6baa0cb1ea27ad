"""How long the commands of a run have run: a part of its record, from which a time budget is counted.

    events.jsonl   {"table": "drivers", "row": {"id": "d000", "seconds": 512.3}, "crc": "1a2b3c4d"}

The seconds of trials do not tell it: trials run at once, and preparation and Ray's start take time without a trial.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

DRIVERS = "drivers"
"""Table of the record."""
_EVERY = 60.0  # seconds between two records while nothing else is recorded


class DriverTime:
    """The seconds of all drivers of a run. A later record of a driver replaces its earlier one.

    Args:
        now: a clock in seconds, as `time.monotonic`.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds: dict[str, float] = {}
        self._own, self._began, self._recorded = "", 0.0, -math.inf

    @property
    def spent(self) -> float | None:
        """Seconds of all drivers as they were recorded; None in a run of a version that did not record them."""
        return math.fsum(self._seconds.values()) if self._seconds else None

    def put(self, row: Mapping[str, Any]) -> None:
        """Adds a record.

        Raises:
            ValueError, TypeError, KeyError: it is damaged.
        """
        if not 0 <= (seconds := float(row["seconds"])) < math.inf:
            raise ValueError(f"{row['id']}: {seconds} seconds")
        self._seconds[str(row["id"])] = seconds

    def begin(self, began: float, earlier: float = 0.0) -> None:
        """This driver runs since `began`, in the time of `now`; from now on `events` records its seconds.

        Args:
            earlier: an estimate of the seconds of drivers that recorded none.
        """
        if earlier and not self._seconds:
            self._seconds["before"] = earlier
        numbers = [int(id[1:]) for id in self._seconds if id[:1] == "d" and id[1:].isdigit()]
        self._own, self._began = f"d{max(numbers, default=-1) + 1:03d}", began

    def events(self, force: bool) -> list[dict[str, Any]]:
        """The record of this driver's seconds, with those before it in its first one; empty if there is none to write.

        Args:
            force: also if the last one was made less than a minute ago.
        """
        now = self._now()
        if not self._own or not (force or now >= self._recorded + _EVERY):
            return []
        first = math.isinf(self._recorded)
        self._seconds[self._own], self._recorded = now - self._began, now
        return self.everything() if first else [_event(self._own, self._seconds[self._own])]

    def everything(self) -> list[dict[str, Any]]:
        """The records of all drivers."""
        return [_event(id, seconds) for id, seconds in self._seconds.items()]


def _event(id: str, seconds: float) -> dict[str, Any]:
    return {"table": DRIVERS, "row": {"id": id, "seconds": seconds}}
