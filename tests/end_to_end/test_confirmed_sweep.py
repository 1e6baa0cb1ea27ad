"""A tiny sweep that is interrupted in its confirmation, continued and confirmed, with the real command line and Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.recording.tables import read_rows
from tests.helpers.sweep import SPACE, gone, only_run, sets, steps, store, sweeps, trials
from tests.helpers.tensorboard import Page

__all__ = ["store", "sweeps"]
pytestmark = pytest.mark.timeout(900)  # many processes per test, also on busy machines


@pytest.mark.slow
def test_sweep_is_interrupted_in_its_confirmation_and_resumed(tmp_path: Path, store: Path, sweeps: Any) -> None:
    results = tmp_path / "results"
    first = sweeps(
        *("--space", SPACE, "--results", str(results), "--store", str(store), "--perceptual", "none"),
        *("--trials", "2", "--confirm", "1", "--seeds", "2", "--max-steps", "20"),
        *("--max-concurrent", "1", *sets(training__reports=4)),
    )
    first.wait_for(r"confirm +the best 1 and the baseline with 2 fresh seeds each: 4 trials, 80 steps")
    first.wait_for(r"c00[01] step 10/20")
    processes = first.descendants()
    first.interrupt()
    assert first.wait() == 130
    assert gone(processes, 5) == [] and "Traceback" not in first.text
    run = only_run(results)
    searched, begun = trials(run), trials(run, "confirmation")
    assert {row["status"] for row in searched.values()} == {"finished"}
    assert "interrupted" in {row["status"] for row in begun.values()} and set(begun) <= {"c000", "c001", "c002", "c003"}
    # One line says why nothing is claimed; nothing is lost.
    assert "leads the search" in first.text
    assert first.text.count("Nothing is called better: the confirmation has not finished.") == 1
    assert " of 6 trials ended" in first.text and f"--resume {run}" in first.text

    second = sweeps("--resume", str(run))
    assert second.wait() == 0, second.text
    assert "Traceback" not in second.text and "c000 continues at step" in second.text
    assert trials(run) == searched  # no trial of the search was repeated
    confirmed = trials(run, "confirmation")
    assert sorted(confirmed) == ["c000", "c001", "c002", "c003"]
    assert {(row["status"], row["steps"]) for row in confirmed.values()} == {("finished", 20)}
    assert all(steps(run, name) == [0, 5, 10, 15, 20] for name in confirmed)
    images = read_rows(run / "per_image.parquet")
    tested = {row["id"] for row in images if row["split"] == "test"}
    assert tested == {*confirmed, "bicubic", "input_latent", "autoencoder", "teacher_1", "teacher_15"}
    page = Page(run / "trials")
    assert {page.status(name) for name in page.groups} == {"STATUS_SUCCESS"}
    assert {page.hparams(name)["kind"] for name in confirmed} == {"confirmation"}
    answer = (run / "report" / "answer.md").read_text()
    assert "4 test photographs and 2 seeds such a sweep finds a true difference of" in answer
    assert "leads the search" not in answer
