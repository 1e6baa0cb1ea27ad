"""Whole sweeps through the branches for GPUs: Ray places trials on declared GPUs, and CPUs compute in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.recording.tables import read_rows
from tests.helpers.sweep import SPACE, only_run, run_sweep, sets, steps, store, trials
from trainables.common.devices import FAKE

__all__ = ["store"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RUN = ["--space", SPACE, "--perceptual", "none", "--max-steps", "6", "--confirm", "0"]
RUN += sets(training__reports=3)


@pytest.mark.parametrize(
    ("declared", "flags", "placed"),
    [
        ("1", ["--trials", "2", "--gpus-per-worker", "0.5"], "2 at once, each on 1 worker of 1 CPU and 0.5 GPU"),
        (
            "2",
            ["--trials", "1", "--workers-per-trial", "2", "--gpus-per-worker", "1"],
            "1 at once, each on 2 workers of 1 CPU and 1 GPU",
        ),
    ],
    ids=["halves", "group"],
)
def test_sweep_on_declared_gpus(
    declared: str, flags: list[str], placed: str, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAKE, declared)
    ended = run_sweep(*RUN, *flags, "--store", str(store), "--results", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    log = ended.stdout + ended.stderr
    assert placed in log
    run = only_run(tmp_path)
    found = trials(run)
    assert {row["status"] for row in found.values()} == {"finished"} and len(found) == int(flags[1])
    assert all(steps(run, trial)[-1] == 6 for trial in found)
    assert all(row.get("gpu/utilisation") is None for row in read_rows(run / "history.parquet"))


def test_sweep_that_needs_more_than_the_declared_gpus_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAKE, "1")
    ended = run_sweep(*RUN, "--workers-per-trial", "2", "--gpus-per-worker", "1", "--results", str(tmp_path))
    assert ended.returncode == 2
    assert "a trial needs 2 GPUs, this machine has 1" in ended.stderr
