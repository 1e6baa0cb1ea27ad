"""The time budget of a sweep: whether another trial fits, with the confirmation after it.

How long a trial takes is known from the trials so far: the seconds that each took, in proportion to its steps. The
first trial always starts.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from sweeps.planning.confirmation import Confirmation
from sweeps.recording.progress import logger

MARGIN = 1.15  # trials differ, and the test images are measured too
FINISHING = 20.0  # seconds for the answer and the report


def for_trials(seconds: float) -> float:
    """The part of a budget in which trials run; the rest is for the answer."""
    return seconds - min(FINISHING, 0.1 * seconds)


class Deadline:
    """Interrupts this process as Ctrl-C does if the time budget ends before the work inside the context has.

    Args:
        seconds: the budget, which `began` when `time.monotonic()` was that; infinite without one.

    Attributes:
        over: whether it has interrupted.
    """

    def __init__(self, seconds: float, began: float) -> None:
        self.over = False
        left = began + seconds - time.monotonic()
        self._timer = threading.Timer(max(0.0, left), self._over) if left < threading.TIMEOUT_MAX else None

    def _over(self) -> None:
        self.over = True
        logger.info("note       the time budget is over")
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> Deadline:
        if self._timer:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer:
            self._timer.cancel()


class Clock:
    """Counts down the time of a sweep and learns how long its trials take.

    Args:
        seconds: the budget; infinite without one.
        concurrent: trials that run at once, or what tells their number now.
        max_steps: training steps of a trial of the search; 0 if nothing trains.
        confirmation_steps: of the confirmation.
        started: when the budget began, in the time of `now`.
        now: a clock in seconds.
        reused: whether a process runs one trial after the other; then only its first trial waits for its start.
    """

    def __init__(
        self,
        seconds: float,
        concurrent: int | Callable[[], int],
        max_steps: int,
        confirmation_steps: int,
        started: float | None = None,
        now: Callable[[], float] = time.monotonic,
        reused: bool = False,
    ) -> None:
        self.reused = reused
        self._now, self._concurrent = now, concurrent
        self._max_steps, self._longer = max_steps, max(1, confirmation_steps) / max(1, max_steps)
        self._deadline = (now() if started is None else started) + for_trials(seconds)
        self._full: dict[str, float] = {}
        self._since: dict[str, tuple[float, int]] = {}
        self._reported: set[str] = set()

    @property
    def limited(self) -> bool:
        return self._deadline < float("inf")

    @property
    def left(self) -> float:
        """Seconds for trials that are left; negative if the budget is used up."""
        return self._deadline - self._now()

    def knows(self, configuration: str, seconds: float, steps: int) -> None:
        """A trial of this configuration took so long for its steps. One without training is whole with its report."""
        if seconds > 0 and (steps or not self._max_steps):
            self._full[configuration] = seconds * max(1, self._max_steps) / max(1, steps)

    def begins(self, trial: str, step: int = 0) -> None:
        self._since[trial] = self._now(), step
        self._reported.discard(trial)

    def reports(self, trial: str, configuration: str, step: int, busy: float = 0.0) -> None:
        """A trial of the search has reached a step.

        Args:
            busy: the seconds for which it has worked since its last report, or since its process had started.
        """
        since, first = self._since.get(trial, (self._now(), step))
        if self.reused and busy and trial not in self._reported:
            since = max(since, self._now() - busy)
            self._since[trial] = since, first
        self._reported.add(trial)
        if step > first or step >= self._max_steps:
            self.knows(configuration, self._now() - since, step - first)

    def fits(self, configurations: Iterable[str]) -> bool:
        """Whether trials of the confirmation of these configurations fit into the time that is left; none always do."""
        each = [self._longer * self._expected(name) for name in configurations]
        return not each or MARGIN * self._together(each) <= self.left

    def has_time(self, confirmation: Confirmation | None, likely: Sequence[str]) -> bool:
        """Whether another trial of the search fits before the confirmation.

        Args:
            likely: the configurations that would be confirmed now, the baseline first.
        """
        if not self._full:
            return self.left > 0
        mean, longest = statistics.fmean(self._full.values()), 0.0
        if confirmation:
            names = [*likely, *[""] * (confirmation.finalists + 1 - len(likely))]
            longest = self._together([self._longer * self._expected(name) for name in names] * confirmation.seeds)
        return MARGIN * (mean + longest) <= self.left

    def _expected(self, configuration: str) -> float:
        """Seconds of a whole trial of the search; of an unknown configuration, the mean of the known ones."""
        mean = statistics.fmean(self._full.values()) if self._full else 0.0
        return self._full.get(configuration, mean)

    def _together(self, each: Sequence[float]) -> float:
        """An upper bound of the seconds of several trials (Graham, 1966)."""
        at_once = max(1, self._concurrent() if callable(self._concurrent) else self._concurrent)
        return sum(each) / at_once + max(each, default=0.0) * (1 - 1 / at_once)
