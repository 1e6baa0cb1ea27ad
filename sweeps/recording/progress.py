"""Progress of a running sweep, on the terminal and in sweep.log."""

from __future__ import annotations

import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeps.formatting import metric_text, parameters_text
from trainables.common.units import duration

logger = logging.getLogger("sweep")

_SUMMARY_EVERY = 15.0


def log_to(path: Path) -> logging.Handler:
    """Logs the sweep to the terminal and appends the same lines to a file; returns the file's handler."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    form = logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
    if not logger.handlers:
        terminal = logging.StreamHandler()
        terminal.setFormatter(form)
        logger.addHandler(terminal)
    file = logging.FileHandler(path)
    file.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk costs the line, not a traceback
    file.setFormatter(form)
    logger.addHandler(file)
    return file


@dataclass
class _Trial:
    name: str
    given: bool
    step: int = 0
    status: str = "running"
    started: float = 0.0
    last: float = 0.0
    reports: int = 0
    whole: int = 0  # steps of a whole trial; 0 for those of the search


class Progress:
    """Follows the trials of one sweep and estimates the remaining time.

    The estimate uses the seconds per step of the last reports. A proposed trial that has not started counts with the
    mean length of the proposed trials that have ended; before one has ended, with its full length, so that the first
    estimates are too long rather than too short.

    Args:
        trials: number of trials of the sweep.
        given: number of trials that run all steps: points of the space, and the confirmation.
        concurrent: trials that run at once.
        shown: metrics on the line of a report.
    """

    def __init__(self, trials: int, given: int, max_steps: int, concurrent: int, shown: tuple[str, ...]) -> None:
        self.trials, self.given, self.max_steps = trials, given, max_steps
        self.concurrent, self.shown = max(1, concurrent), shown
        self._trials: dict[str, _Trial] = {}
        self._rates: list[float] = []
        self._last_summary = 0.0

    def started(self, id: str, name: str, given: bool, again: bool = False, whole: int = 0) -> None:
        now = time.monotonic()
        self._trials[id] = _Trial(name, given, 0, "running", now, now, whole=whole)
        logger.info("%s %s %s", id, "starts again:" if again else "starts", name)

    def continued(self, id: str, step: int) -> None:
        """A trial that was started again continues at `step`; without a checkpoint it starts over at step 0."""
        trial = self._trials[id]
        trial.step, trial.last = step, time.monotonic()
        logger.info("%s %s at step %d", id, "continues" if step else "starts over", step)

    def reported(self, id: str, step: int, metrics: Mapping[str, float]) -> None:
        trial, now = self._trials[id], time.monotonic()
        if step > trial.step:
            self._rates = [*self._rates[-19:], (now - trial.last) / (step - trial.step)]
        trial.step, trial.last, trial.reports = step, now, trial.reports + (step > 0)
        values = "  ".join(f"{name.removeprefix('val/')} {metric_text(name, metrics[name])}" for name in self.shown)
        name, trained = trial.name, parameters_text(metrics.get("train/parameters"))
        if step and trained and trial.reports == 1:  # not known before training
            name += f", {trained} parameters train"
        logger.info("%s step %d/%d  %s  %s", id, step, trial.whole or self.max_steps, values, name)
        self.summary()

    def ended(self, id: str, status: str, why: str = "") -> None:
        trial = self._trials.setdefault(id, _Trial(id, False))
        trial.status = status
        logger.info("%s %s at step %d%s", id, status, trial.step, f": {why}" if why else "")
        if status != "interrupted":
            self.summary(force=True)

    def known(self, id: str, name: str, given: bool, step: int, status: str) -> None:
        """A trial that ended under an earlier driver."""
        self._trials[id] = _Trial(name, given, step, status)

    def summary(self, force: bool = False) -> None:
        """One line about the whole sweep, at most every 15 seconds unless forced."""
        now = time.monotonic()
        if not force and now - self._last_summary < _SUMMARY_EVERY:
            return
        self._last_summary = now
        counts: dict[str, int] = defaultdict(int)
        for trial in self._trials.values():
            counts[trial.status] += 1
        live = ((id, trial) for id, trial in self._trials.items() if trial.status == "running")
        running = ", ".join(f"{id} {trial.step}/{trial.whole or self.max_steps}" for id, trial in live)
        parts = [
            f"{len(self._trials) - counts['running']} of {self.trials} trials ended",
            f"{counts['stopped']} of them stopped early by ASHA",
            *([f"{counts['failed']} failed"] if counts["failed"] else []),
            f"running: {running or 'none'}",
        ]
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        logger.info("%s", "; ".join(parts))

    def seconds_left(self) -> float | None:
        """Estimated seconds until the sweep ends; None before the first report."""
        if not self._rates:
            return None
        running = [trial for trial in self._trials.values() if trial.status == "running"]
        ended = [
            trial for trial in self._trials.values() if trial.status in ("finished", "stopped") and not trial.given
        ]
        expected = statistics.fmean(trial.step for trial in ended) if ended else float(self.max_steps)
        given_left = max(0, self.given - sum(trial.given for trial in self._trials.values()))
        proposed_left = max(0, self.trials - len(self._trials) - given_left)
        steps = given_left * self.max_steps + proposed_left * expected
        for trial in running:
            beyond = trial.given or trial.step >= expected  # a trial longer than the mean may run all steps
            steps += ((trial.whole or self.max_steps) if beyond else expected) - trial.step
        longest = max(((trial.whole or self.max_steps) - trial.step for trial in running if trial.given), default=0)
        # Rates are measured per process while all run; the last trial is assumed to be no faster alone.
        return statistics.fmean(self._rates) * max(steps / self.concurrent, longest)
