"""What the recorder makes of a trial whose try has failed, and of files that a killed driver left."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from search_spaces import Float
from sweeps.recording.progress import logger
from sweeps.recording.recorder import Recorder, RecorderSettings
from sweeps.recording.tables import RunTables
from sweeps.recording.tensorboard import TensorBoardTrials
from sweeps.trial_config import GIVEN, ID, LABEL, PARAMETERS, SEED
from tests.helpers.tensorboard import Page, scalars

NODE = "The actor died because its node has died. Node Id: 0123"
CUDA = "Traceback (most recent call last):\nRuntimeError: CUDA error"
UNFIT = "Traceback (most recent call last):\ntrainables.training.launch.OnUnfitNode: --results: node a does not see /b"


class Tried(NamedTuple):
    """What of Tune's trial is read. Tune's own needs a Ray that runs to know the place of its file."""

    config: dict[str, Any]
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
        assert caplog.messages[-1] == "t002 lost its machine before it started; waits for free resources"
        never = Tried(
            {ID: "t001", PARAMETERS: {"training.learning_rate": 1e-4}, LABEL: "low", SEED: 0, GIVEN: True},
            starting.error_file,
        )
        recorder.on_trial_error(1, [never], never)
        (row,) = recorder.tables.leaderboard
        assert (row["id"], row["status"], row["error"]) == ("t001", "failed", NODE.splitlines()[-1])
        recorder.progress.started("t003", "rate 0.001", False)
        recorder.progress.reported("t003", 40, {"val/psnr": 20.0})
        for number, error, expected in (
            (1, NODE, "t003 lost its machine after step 40; waits for free resources"),
            (
                2,
                CUDA,
                "t003 failed (RuntimeError: CUDA error) after step 40; waits for free resources",
            ),
            (
                3,
                UNFIT,
                "t003 cannot train on its node (--results: node a does not see /b) after step 40; "
                "waits for free resources",
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


def test_files_older_than_the_record_are_completed(tmp_path: Path) -> None:
    """The driver was killed before it uploaded what its record says, or files of the run were removed."""
    space = {"training.learning_rate": Float(1e-5, 1e-3)}
    settings = RecorderSettings(str(tmp_path), ("val/psnr",), space, 90, 3, 0, 1, 0, ("val/psnr",))
    tables, board = RunTables(tmp_path), TensorBoardTrials(tmp_path / "trials", space, ["val/psnr"])
    tables.upsert_trial({"id": "input", "kind": "control", "status": "control", "val/psnr": 17.0})
    for id, status in (("t000", "finished"), ("t001", "stopped"), ("t002", "running")):
        tables.upsert_trial(
            {"id": id, "status": "running", "label": "", "seed": 3, "config/training.learning_rate": 1e-4}
        )
        for step in (0, 30, 60):
            tables.add_report({"id": id, "step": step, "val/psnr": 20.0 + step, "loss/l1": 0.5})
        board.hparams(id, {}, {}, "running")
        board.losses(id, [(step, {"loss/l1": 0.5}) for step in (10, 20, 30)])
        for step in (0, 30):
            board.report(id, step, {"val/psnr": 20.0 + step})
        tables.upsert_trial({"id": id, "status": status, "val/psnr": 80.0, "steps": 60})
    tables.flush(force=True)
    board.close()
    shutil.rmtree(tmp_path / "trials" / "t001")
    (tmp_path / "trials" / "t002" / "params.json").touch()  # as a power loss left it

    recorder = Recorder(settings)
    recorder.open()
    recorder.close()
    page = Page(tmp_path / "trials")
    ended = dict.fromkeys(("input", "t000", "t001"), "STATUS_SUCCESS")
    assert {name: page.status(name) for name in page.groups} == ended
    expected = {"training.learning_rate": 1e-4, "seed": 3.0, "kind": "trial"}
    assert page.hparams("t000") == {**expected, "status": "finished"}
    assert page.hparams("t001") == {**expected, "status": "stopped"}
    for id in ("t000", "t001", "t002"):
        assert scalars(tmp_path / "trials" / id, "val/psnr") == [(0, 20.0), (30, 50.0), (60, 80.0)]
    assert page.metrics("input") == {"val/psnr": (0, 17.0)} and page.metrics("t000") == {"val/psnr": (60, 80.0)}
    assert [step for step, _ in scalars(tmp_path / "trials" / "t000", "loss/l1")] == [10, 20, 30]
    for id in ("t001", "t002"):
        params = json.loads((tmp_path / "trials" / id / "params.json").read_text(encoding="utf-8"))
        assert params == {"id": id, "label": "", **expected}

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").rglob("*") if path.is_file()}
    again = Recorder(settings)
    again.open()
    again.close()
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").rglob("*") if path.is_file()}
    declared = tmp_path / "trials" / "events.out.tfevents.0000000000.experiment"
    assert {path for path in after if after[path] != before.get(path)} <= {declared}
