"""Which trials a resumed sweep runs again: those that a time budget stopped, and failed ones that may succeed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune.experiment import Trial

from sweeps.answering.remarks import ends_of_trials
from sweeps.recording.progress import Progress
from sweeps.recording.recorder import Recorder, RecorderSettings
from sweeps.recording.tables import ASKED_AGAIN, RunTables, has_ended
from sweeps.running.scheduler import SweepScheduler
from sweeps.running.search import SweepSearch
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, LABEL
from tests.sweeps.recording.test_tables import measured
from tests.sweeps.running.test_confirming_search import CONFIRM, SPACE
from trainables.settings import TrialSettings
from trainables.training.launch import last_report
from trainables.training.reporting import TrialDiverged
from trainables.training.results import FAILED

STEPS, RUNG = 8, 4
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


class Driver:
    """One driver of a run without Ray: its search, scheduler and recorder, on which trials are called by hand."""

    def __init__(self, folder: Path, trials: int = 3, over: bool = False) -> None:
        settings = RecorderSettings(str(folder), ("val/psnr",), {}, STEPS, trials, 2, 3, seed=0, shown=("val/psnr",))
        self.recorder, self.over = Recorder(settings), over
        self.recorder.setup()
        self.tables = self.recorder.tables
        rows, of = self.tables.leaderboard, self.tables.reports_of
        self.search = SweepSearch(SPACE, "val/psnr", "max", 0, trials, STEPS, folder / "journal", CONFIRM, rows, of)
        self.scheduler = SweepScheduler(
            "val/psnr", "max", STEPS, RUNG, 2.0, rows, of,
            over=lambda: self.over, out_of_time=self.recorder.out_of_time,
        )  # fmt: skip

    def start(self) -> Trial:
        config = self.search.suggest(f"trial{len(self.search.handed_out)}")
        trial = Trial("trial", config=config, stub=True, trial_id=f"trial{len(self.search.handed_out) - 1}")
        self.scheduler.on_trial_add(None, trial)
        self.recorder.on_trial_start(0, [trial], trial)
        return trial

    def report(self, trial: Trial, step: int, psnr: float, repeated: bool = False) -> str:
        """Returns what the scheduler decides, and ends the trial if it stops there."""
        result = measured(step, 0.3, repeated, psnr)
        decision = self.scheduler.on_trial_result(None, trial, dict(result))
        self.recorder.on_trial_result(0, [trial], trial, result)
        trial.run_metadata.last_result = dict(result)
        if decision == "STOP":
            self.scheduler.on_trial_complete(None, trial, dict(result))
            self.search.on_trial_complete(trial.trial_id, dict(result))
            self.recorder.on_trial_complete(0, [trial], trial)
        return decision

    def end(self) -> None:
        self.recorder.on_experiment_end([])

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in RunTables(Path(self.recorder.settings.folder)).load().leaderboard}


def stopped_by_time(folder: Path) -> Driver:
    """A run of three trials: the baseline ends, ASHA stops the proposal, and the time budget the second point."""
    driver = Driver(folder)
    baseline, point, proposal = (driver.start() for _ in range(3))
    for trial in (baseline, point):
        assert driver.report(trial, RUNG, 22.0) == "CONTINUE"
    driver.over = True
    assert driver.report(proposal, RUNG, 10.0) == "STOP"
    assert driver.report(point, 6, 23.0) == "STOP" and point.config[GIVEN]
    assert driver.report(baseline, 6, 23.0) == "CONTINUE"
    assert driver.report(baseline, STEPS, 24.0) == "STOP"
    driver.end()
    return driver


def test_trial_that_the_time_stopped_continues_and_one_of_asha_does_not(tmp_path: Path) -> None:
    rows = stopped_by_time(tmp_path).rows
    assert [row["status"] for row in rows.values()] == ["finished", "stopped", "stopped"]
    assert [has_ended(row) for row in rows.values()] == [True, False, True]

    resumed = Driver(tmp_path)
    trial = resumed.start()
    assert (trial.config[ID], trial.config[LABEL]) == ("t001", "high")
    resumed.report(trial, 6, 23.0, repeated=True)
    assert resumed.report(trial, STEPS, 25.0) == "STOP"
    resumed.end()
    assert resumed.rows["t001"]["status"] == "finished" and not resumed.rows["t001"]["out_of_time"]
    # Both points finished, so there is something to confirm.
    assert [resumed.start().config[ID] for _ in range(2)] == ["c000", "c001"]


def test_remark_says_why_a_trial_stopped(tmp_path: Path) -> None:
    by_asha, by_time = ends_of_trials(list(stopped_by_time(tmp_path).rows.values()))
    assert by_asha == "1 trial stopped early by ASHA; not compared at full length."
    assert by_time.startswith("1 trial stopped because the time budget was over") and "--time-budget" in by_time


def test_progress_counts_them_apart(tmp_path: Path) -> None:
    progress: Progress = stopped_by_time(tmp_path).recorder.progress
    assert "1 of them stopped early by ASHA; 1 out of time; running: none" in progress.line()


def test_trial_that_is_asked_for_again_has_not_ended(tmp_path: Path) -> None:
    recorder = stopped_by_time(tmp_path).recorder
    ended = int(re.search(r"(\d+) of \d+ trials ended", recorder.progress.line())[1])  # type: ignore[index]
    (id, *_) = [row["id"] for row in recorder.tables.leaderboard if row["status"] == "stopped"]
    before = recorder.tables.trial(id)
    recorder.repeat([id])
    after = recorder.tables.trial(id)
    assert f"{ended - 1} of " in recorder.progress.line()
    assert after == {**before, "status": "interrupted", ASKED_AGAIN: True} and not has_ended(after, confirmed=True)
    # If the new try fails, or there is no time for it, it is tried once more: it was in the search before the leaders
    # were chosen.
    assert not has_ended({**after, "status": "failed"}, confirmed=True)


def test_search_trial_stays_out_once_the_confirmation_has_begun() -> None:
    """Otherwise a new leader could appear after leaders were chosen."""
    row = {"kind": "trial", "status": "stopped", "out_of_time": True}
    assert has_ended(row, confirmed=True) and not has_ended(row)
    assert has_ended({"kind": CONFIRMATION, "status": "stopped"})


@pytest.mark.parametrize(("error", "again"), [(TrialDiverged("step 2: loss is nan"), False), (NO_MEMORY, True)])
def test_resume_tries_a_trial_without_memory_again_and_not_one_that_diverged(
    error: Exception, again: bool, tmp_path: Path, tiny: TrialSettings
) -> None:
    """It may run on a larger GPU then, or on one that nobody else uses."""
    driver = Driver(tmp_path)
    trial = driver.start()
    end = last_report(error, tiny)
    assert end is not None
    trial.run_metadata.last_result = end
    driver.recorder.on_trial_complete(0, [trial], trial)
    driver.end()
    row = driver.rows["t000"]
    assert (row["status"], row["error"]) == ("failed", end[FAILED])
    assert (Driver(tmp_path).start().config[ID] == "t000") is again
