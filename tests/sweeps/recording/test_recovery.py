"""A trial whose try has failed, as Tune tells the recorder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import pytest

from search_spaces import Float
from sweeps.recording.progress import logger
from sweeps.recording.recorder import Recorder, RecorderSettings
from sweeps.trial_config import ID

NODE = "The actor died because its node has died. Node Id: 0123"
CUDA = "Traceback (most recent call last):\nRuntimeError: CUDA error"


class Tried(NamedTuple):
    """What of Tune's trial is read. Tune's own needs a Ray that runs to know the place of its file."""

    config: dict[str, str]
    error_file: str


def test_trial_that_waits_for_a_place_says_why_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = {"training.learning_rate": Float(1e-5, 1e-3)}
    recorder = Recorder(RecorderSettings(str(tmp_path), ("val/psnr",), space, 90, 2, 0, 2, 0, ("val/psnr",)))
    recorder.open()
    errors = tmp_path / "error.txt"
    trial = Tried({ID: "t003"}, str(errors))
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        starting = Tried({ID: "t002"}, str(tmp_path / "lost.txt"))  # its process had not started: no callback before
        Path(starting.error_file).write_text(
            f"Failure # 1 (occurred at 2026-11-27_10-00-00)\n{NODE}\n", encoding="utf-8"
        )
        recorder.on_trial_recover(1, [starting], starting)
        assert caplog.messages[-1] == "t002 lost its machine before it started; waits for a place"
        recorder.progress.started("t003", "rate 0.001", False)
        recorder.progress.reported("t003", 40, {"val/psnr": 20.0})
        for number, error, expected in (
            (1, NODE, "t003 lost its machine after step 40; waits for a place"),
            (
                2,
                CUDA,
                "t003 failed (RuntimeError: CUDA error) after step 40; waits for a place",
            ),
        ):
            with errors.open("a", encoding="utf-8") as file:  # as Tune's Trial.handle_error
                file.write(f"Failure # {number} (occurred at 2026-11-27_10-00-00)\n{error}\n")
            recorder.on_trial_recover(1, [trial], trial)
            assert caplog.messages[-1] == expected
            assert "waiting: t003" in recorder.progress.line()
    finally:
        logger.removeHandler(caplog.handler)
        recorder.close()
