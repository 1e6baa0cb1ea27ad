"""The live view: on a terminal only, with what matters in it; the log keeps every line."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.recording.progress import Progress, StandardError, log_to, logger
from sweeps.recording.terminal import ProgressTable, live_view


@pytest.fixture
def progress() -> Progress:
    """Of six trials, one has finished, one was stopped, one failed and two run."""
    found = Progress(6, 2, 300, 2, ("val/lpips", "val/psnr"))
    for id, step, value, status in (
        ("t000", 300, 0.35, "finished"),
        ("t001", 100, 0.30, "stopped"),
        ("t002", 100, 0.90, "failed"),
        ("t003", 200, 0.40, ""),
        ("t004", 0, 0.0, ""),
    ):
        found.started(id, f"weight {step}", False)
        if step:
            found.reported(id, step, {"val/lpips": value, "val/psnr": 20.0})
        if status:
            found.ended(id, status)
    return found


def drawn(progress: Progress, width: int = 100, height: int = 25) -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as capture:
        console.print(ProgressTable(progress))
    return capture.get()


def test_view_shows_trials_the_best_one_and_what_is_left(progress: Progress) -> None:
    lines = drawn(progress).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["t003", "t004", "all"]
    assert "200/300" in lines[0] and "LPIPS 0.4000" in lines[0]
    assert "1 stopped early by ASHA, 1 failed" in lines[2] and "3/6" in lines[2]
    assert lines[3].startswith("best so far: t000 (weight 300), LPIPS 0.3500 at step 300")
    assert lines[4].startswith("about ") and lines[4].endswith(" left")


@pytest.mark.parametrize(("width", "height"), [(30, 8), (80, 7), (200, 60)])
def test_view_fits_any_terminal(progress: Progress, width: int, height: int) -> None:
    for number in range(5, 60):
        progress.started(f"t{number:03d}", "a long name " * 20, False)
    lines = drawn(progress, width, height).splitlines()
    assert len(lines) <= height and max(map(len, lines)) <= width


def test_view_before_the_first_trial() -> None:
    text = drawn(Progress(4, 1, 0, 1, ()))
    assert "0/4" in text and "none yet" in text


def test_trials_that_were_not_foreseen_are_counted(progress: Progress) -> None:
    """A resumed sweep keeps the finalists of its earlier confirmation."""
    for id in ("c000", "c001"):
        progress.started(id, "weight 1", True)
        progress.ended(id, "finished")
    assert progress.line().startswith("5 of 7 trials ended")


def test_a_trial_that_waits_for_a_place_is_not_running(progress: Progress) -> None:
    left = progress.seconds_left()
    progress.waits("t003", "lost its machine")
    line = progress.line()
    assert line.startswith("3 of 6 trials ended") and "; running: t004 0/300; waiting: t003;" in line
    assert progress.seconds_left() == left
    progress.started("t003", "weight 200", False, again=True)
    assert "waiting" not in progress.line() and "t003 0/300" in progress.line()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_of_single_trials_stay_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Progress, terminal: bool
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(logger, "handlers", [])
    file = log_to(tmp_path / "sweep.log")
    try:
        with live_view(progress):
            progress.reported("t003", 250, {"val/lpips": 0.3, "val/psnr": 20.0})
            logger.info("note       of the whole sweep")
        logger.info("after")
    finally:
        file.close()
    log = (tmp_path / "sweep.log").read_text()
    for line in ("t003 step 250/300", "note       of the whole sweep", "after"):
        assert line in log and (line in stream.getvalue()) == (not terminal or "step" not in line)
    assert ("best so far" in stream.getvalue()) == terminal
    assert {type(handler) for handler in logger.handlers} == {StandardError, logging.FileHandler}


def test_lines_go_to_the_standard_error_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook replaces it between two sweeps of one process."""
    monkeypatch.setattr(logger, "handlers", [])
    file = log_to(tmp_path / "sweep.log")
    try:
        for line in ("first", "second"):
            stream = io.StringIO()
            monkeypatch.setattr(sys, "stderr", stream)
            logger.info(line)
            assert stream.getvalue().endswith(f"  {line}\n")
            stream.close()
    finally:
        file.close()
