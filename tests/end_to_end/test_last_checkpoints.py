"""Ctrl-C between two reports: the trials write a checkpoint first, with the real command line and Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sweep import gone, light, only_run, sweeps, trials
from trainables.training.checkpoint_folders import newest_name

__all__ = ["sweeps"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # many processes per test, also on busy machines
SAID = "stopping   1 trial writes a checkpoint, for at most 60 s; Ctrl-C again does not wait"


def written_after(folder: Path, name: str) -> str:
    """The name of the first checkpoint in a trial's folder that comes after another one."""
    while (newest := newest_name(folder)) <= name:
        time.sleep(0.02)
    return newest


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_trial_writes_a_checkpoint_first(tmp_path: Path, sweeps: Any, workers: int) -> None:
    """Its first report never comes; checkpoints between reports do, every 4 s."""
    sweep = sweeps(
        *light(tmp_path / "results", tmp_path / "store", training__reports=1, training__checkpoint_minutes=0.07),
        *("--trials", "1", "--confirm", "0", "--max-steps", "1000000"),
        *("--workers-per-trial", str(workers), "--stop-seconds", "60"),
    )
    sweep.wait_for("trials +starting processes")
    folder = only_run(tmp_path / "results") / "trials" / "t000"
    first = written_after(folder, "")
    time.sleep(2)  # a busy machine needs this for another step
    processes = sweep.descendants()
    began = time.monotonic()
    sweep.interrupt()
    assert sweep.wait() == 130
    assert time.monotonic() - began < 60
    assert gone(processes, 5) == []
    assert sweep.seen(SAID) == 1 and "Traceback" not in sweep.text
    second = newest_name(folder)
    assert second > first
    if workers > 1:
        return

    again = sweeps("--resume", str(folder.parent.parent))
    assert written_after(folder, second) > second  # trained on from there
    again.interrupt()
    again.wait_for(SAID)
    again.interrupt()
    assert again.wait() == 130
    assert "Traceback" not in again.text
    (row,) = trials(folder.parent.parent).values()
    assert (row["status"], row["steps"]) == ("interrupted", 0)
