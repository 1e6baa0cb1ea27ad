"""The report while a sweep runs: made again as trials report. A Tune callback, on the driver."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune import Callback

from sweeps.answering.comparison import answer, baseline_trials
from sweeps.answering.report import write_sweep_report
from sweeps.planning.plan import Plan
from sweeps.recording.progress import logger
from sweeps.recording.recorder import Recorder
from trainables.common.errors import one_line

EVERY = 15.0  # seconds between two reports, at least
SHARE = 0.05  # of the driver's time, at most: a report takes longer the more trials there are

UNFINISHED = "the sweep is still running"


class LiveReport(Callback):
    """Writes the report of a running sweep.

    It never ends a sweep: a report that cannot be made costs a line in the log.

    Args:
        recorder: of the same sweep, before this one in Tune's list of callbacks.
    """

    def __init__(self, plan: Plan, folder: Path, recorder: Recorder) -> None:
        self._plan, self._folder, self._recorder = plan, folder, recorder
        self._next = -float("inf")
        self._failed = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; nothing of this is read again

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.update()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.update()

    def update(self) -> None:
        """Writes the report if it is time to."""
        started = time.monotonic()
        if started < self._next or self._recorder.stopped:
            return
        self._write(UNFINISHED, self._recorder.progress.line(), running=True)
        ended = time.monotonic()
        self._next = ended + max(EVERY, (ended - started) / SHARE)

    def stopped(self, status: str) -> None:
        """Writes the last report of a sweep that cannot go on."""
        if self._next > 0:  # there is one that says that the sweep is running
            self._write("the sweep has not ended", status, running=False)

    def _write(self, unconfirmed: str, status: str, running: bool) -> None:
        plan, tables = self._plan, self._recorder.tables
        rows = tables.leaderboard
        baseline_ids = baseline_trials(rows)
        try:
            found = answer(
                rows,
                (),
                plan.objective,
                baseline_ids,
                plan.direction,
                unconfirmed,
                objectives=len(plan.objectives),
                constraints=plan.constraints,
            )
            if not found.leaders:
                found = replace(found, sentences=("No trial has finished yet.",))
            write_sweep_report(plan, self._folder, tables, baseline_ids, found, status, running)
        except Exception as error:  # of anything in it: the sweep matters more
            if not self._failed:
                logger.info("note       report: not made (%s)", one_line(error))
            self._failed = True
