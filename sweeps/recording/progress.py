"""Progress of a running sweep, on the terminal and in sweep.log."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from sweeps.formatting import is_larger_better, metric_text, parameters_text
from trainables.common.units import duration

logger = logging.getLogger("sweep")

_SUMMARY_EVERY = 15.0

TIMED_OUT = "out of time"
"""Status of a trial here: the time budget was over before ASHA or its last step stopped it."""

PROGRESS = "progress"
"""Attribute of log records about the progress of single trials: a live view shows it instead."""
_SHOWN = {PROGRESS: True}

_FILE_ONLY = "file_only"
FOR_FILE = {_FILE_ONLY: True}
"""`extra` of log records that are not for the terminal."""


def for_terminal(record: logging.LogRecord) -> bool:
    """Whether a record is for the terminal too. A filter of logging."""
    return not getattr(record, _FILE_ONLY, False)


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: notebooks and tests replace it while a process lives."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # a StreamHandler would set a stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


def log_to(path: Path) -> logging.Handler:
    """Logs the sweep to the terminal and appends the same lines to a file; returns the file's handler."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    form = logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
    if not logger.handlers:
        terminal = StandardError()
        terminal.setFormatter(form)
        terminal.addFilter(for_terminal)
        logger.addHandler(terminal)
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
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
    value: float | None = None
    whole: int = 0  # steps of a whole trial; 0 for those of the search
    waiting: bool = False  # for a place, after a failure


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
        # Counted as trials start and end: looking at all of them would take longer with every trial.
        self._running: dict[str, _Trial] = {}
        self._counts: Counter[str] = Counter()
        self._given_begun = 0
        self._proposed_ended, self._proposed_steps = 0, 0
        self._rates: list[float] = []
        self._last_summary = 0.0

    @property
    def trials_by_id(self) -> Mapping[str, _Trial]:
        """A copy: another thread draws the trials while new ones start."""
        return self._trials.copy()

    def best(self) -> tuple[str, _Trial] | None:
        """The trial with the best value of the first metric shown, among those with the most steps; None before the
        first report.
        """
        known = {
            id: trial for id, trial in self.trials_by_id.items() if trial.value is not None and trial.status != "failed"
        }
        if not known or not self.shown:
            return None
        most = max(trial.step for trial in known.values())
        sign = 1 if is_larger_better(self.shown[0]) else -1
        return max(
            ((id, trial) for id, trial in known.items() if trial.step == most),
            key=lambda each: sign * (each[1].value or 0.0),
        )

    def started(self, id: str, name: str, given: bool, again: bool = False, whole: int = 0) -> None:
        now = time.monotonic()
        self._put(id, _Trial(name, given, 0, "running", now, now, whole=whole))
        logger.info("%s %s %s", id, "starts again:" if again else "starts", name, extra=_SHOWN)

    def waits(self, id: str, why: str) -> None:
        """A trial whose try has ended will be tried again."""
        if id not in self._trials:  # lost before its process had started
            logger.info("%s %s before it started; waits for free resources", id, why)
            return
        trial = replace(self._trials[id], waiting=True)
        self._put(id, trial)
        logger.info("%s %s after step %d; waits for free resources", id, why, trial.step)

    def continued(self, id: str, step: int) -> None:
        """A trial that was started again continues at `step`; without a checkpoint it starts over at step 0."""
        trial = self._trials[id]
        trial.step, trial.last = step, time.monotonic()
        logger.info("%s %s at step %d", id, "continues" if step else "starts over", step, extra=_SHOWN)

    def reported(self, id: str, step: int, metrics: Mapping[str, float]) -> None:
        trial, now = self._trials[id], time.monotonic()
        if step > trial.step:
            self._rates = [*self._rates[-19:], (now - trial.last) / (step - trial.step)]
        trial.step, trial.last, trial.reports = step, now, trial.reports + (step > 0)
        trial.value = metrics.get(self.shown[0]) if self.shown else None
        values = "  ".join(f"{name.removeprefix('val/')} {metric_text(name, metrics[name])}" for name in self.shown)
        name, trained = trial.name, parameters_text(metrics.get("train/parameters"))
        if step and trained and trial.reports == 1:  # not known before training
            name += f", {trained} parameters train"
        whole = trial.whole or self.max_steps
        logger.info("%s step %d/%d  %s  %s", id, step, whole, values, name, extra=_SHOWN)
        self.summary()

    def ended(self, id: str, status: str, why: str = "") -> None:
        trial = replace(self._trials.get(id, _Trial(id, False)), status=status)
        self._put(id, trial)
        logger.info("%s %s at step %d%s", id, status, trial.step, f": {why}" if why else "")
        if status != "interrupted":
            self.summary(force=True)

    def known(self, id: str, name: str, given: bool, step: int, status: str) -> None:
        """A trial that ended under an earlier driver."""
        self._put(id, _Trial(name, given, step, status))

    def forget(self, id: str) -> None:
        """A trial that has ended is to run again."""
        self._count(self._trials.pop(id), -1)

    def _put(self, id: str, trial: _Trial) -> None:
        if id in self._trials:
            self._count(self._trials[id], -1)
            self._running.pop(id, None)
        self._trials[id] = trial
        self._count(trial, 1)
        if trial.status == "running":
            self._running[id] = trial
        # Finalists of an earlier confirmation stay, so a resumed sweep may have more trials than were foreseen.
        self.given = max(self.given, self._given_begun)
        self.trials = max(self.trials, len(self._trials))

    def _count(self, trial: _Trial, sign: int) -> None:
        self._counts[trial.status] += sign
        self._given_begun += sign * trial.given
        if trial.status in ("finished", "stopped") and not trial.given:
            self._proposed_ended += sign
            self._proposed_steps += sign * trial.step

    def summary(self, force: bool = False) -> None:
        """One line about the whole sweep, at most every 15 seconds unless forced."""
        now = time.monotonic()
        if not force and now - self._last_summary < _SUMMARY_EVERY:
            return
        self._last_summary = now
        logger.info("%s", self.line(), extra=_SHOWN)

    def line(self) -> str:
        """The state of the whole sweep: trials that ended, trials that run, time left."""
        counts = self._counts
        going = {id: trial for id, trial in self._running.items() if not trial.waiting}
        running = ", ".join(f"{id} {trial.step}/{trial.whole or self.max_steps}" for id, trial in going.items())
        waiting = ", ".join(id for id in self._running if id not in going)
        parts = [
            f"{len(self._trials) - counts['running']} of {self.trials} trials ended",
            f"{counts['stopped']} of them stopped early by ASHA",
            *([f"{counts[TIMED_OUT]} {TIMED_OUT}"] if counts[TIMED_OUT] else []),
            *([f"{counts['failed']} failed"] if counts["failed"] else []),
            f"running: {running or 'none'}",
            *([f"waiting: {waiting}"] if waiting else []),
        ]
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return "; ".join(parts)

    def seconds_left(self) -> float | None:
        """Estimated seconds until the sweep ends; None before the first report."""
        if not self._rates:
            return None
        running = list(self._running.values())  # at once: another thread draws while trials start
        expected = self._proposed_steps / self._proposed_ended if self._proposed_ended else float(self.max_steps)
        given_left = max(0, self.given - self._given_begun)
        proposed_left = max(0, self.trials - len(self._trials) - given_left)
        steps = given_left * self.max_steps + proposed_left * expected
        for trial in running:
            beyond = trial.given or trial.step >= expected  # a trial longer than the mean may run all steps
            steps += ((trial.whole or self.max_steps) if beyond else expected) - trial.step
        longest = max(((trial.whole or self.max_steps) - trial.step for trial in running if trial.given), default=0)
        at_once = max(self.concurrent, len(running))  # a cluster may have got more nodes
        # Rates are measured per process while all run; the last trial is assumed to be no faster alone.
        return statistics.fmean(self._rates) * max(steps / at_once, longest)
