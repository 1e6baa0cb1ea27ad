"""TensorBoard's files, read with TensorBoard's own readers."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2

from search_spaces import Choice, Float
from sweeps.recording.event_files import EventFile
from sweeps.recording.tensorboard import TensorBoardTrials
from tests.helpers.tensorboard import Page, scalars
from trainables.training.measurements import encode_png


def test_scalars_are_read_back(tmp_path: Path) -> None:
    board = TensorBoardTrials(tmp_path)
    board.losses("t000", [(step, {"loss/distillation": 1.0 / step}) for step in (50, 100)])
    board.report("t000", 100, {"val/psnr": np.float32(24.5), "val/ssim": math.nan, "val/lpips": None})
    board.losses("t000", [(step, {"loss/distillation": 1.0 / step}) for step in (150, 200)])
    board.report("t000", 200, {"val/psnr": 25.0})
    assert scalars(tmp_path / "t000", "val/psnr") == [(100, 24.5), (200, 25.0)]  # readable while the file is open
    board.close()
    losses = scalars(tmp_path / "t000", "loss/distillation")
    assert losses == [(step, pytest.approx(1.0 / step)) for step in (50, 100, 150, 200)]
    assert math.isnan(scalars(tmp_path / "t000", "val/ssim")[0][1])


def test_images_are_read_back(tmp_path: Path) -> None:
    grid = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    board = TensorBoardTrials(tmp_path)
    board.images("t000", 100, "val/input_output_target", encode_png(grid))
    board.close()
    accumulator = EventAccumulator(str(tmp_path / "t000"))
    accumulator.Reload()
    (event,) = accumulator.Images("val/input_output_target")
    assert event.step == 100
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), grid)
    with pytest.raises(OSError, match="cannot identify image"):
        board.images("t000", 100, "x", grid.tobytes())


def test_repeated_step_replaces_later_steps(tmp_path: Path) -> None:
    """A trial process died after step 300 and continued from the checkpoint of step 100."""
    board = TensorBoardTrials(tmp_path)
    for step in (100, 200, 300):
        board.losses("t000", [(step, {"loss/x": 1.0})])
        board.report("t000", step, {"val/psnr": 1.0})
    for step in (200, 300, 400):
        board.losses("t000", [(step, {"loss/x": 2.0})])
        board.report("t000", step, {"val/psnr": 2.0})
    board.close()
    expected = [(100, 1.0), (200, 2.0), (300, 2.0), (400, 2.0)]
    assert scalars(tmp_path / "t000", "val/psnr") == expected
    assert scalars(tmp_path / "t000", "loss/x") == expected


def test_values_written_twice_are_stored_once(tmp_path: Path) -> None:
    board = TensorBoardTrials(tmp_path)
    grid = encode_png(np.zeros((4, 4, 3), dtype=np.uint8))
    for _ in range(2):
        board.report("t000", 100, {"val/psnr": 1.0})
        board.images("t000", 100, "grid", grid)
        board.losses("t000", [(100, {"loss/x": 2.0})])
    board.close()
    assert scalars(tmp_path / "t000", "val/psnr") == [(100, 1.0)]
    accumulator = EventAccumulator(str(tmp_path / "t000"))
    accumulator.Reload()
    assert len(accumulator.Images("grid")) == 1


@pytest.mark.parametrize("clock", [2_000_000_000.9, 1_000_000_000.0], ids=["stands still", "jumps back"])
def test_files_are_read_in_the_order_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: float) -> None:
    """Twelve attempts within one tick of the clock, or at an earlier time than the first file."""
    board = TensorBoardTrials(tmp_path)
    board.report("t000", 100, {"val/psnr": 0.0})
    board.close()
    monkeypatch.setattr("sweeps.recording.event_files.time.time_ns", lambda: int(clock * 1e9))
    for value in range(1, 12):
        board.restart("t000", 100)
        board.report("t000", 200, {"val/psnr": float(value)})
    board.close()
    assert scalars(tmp_path / "t000", "val/psnr") == [(100, 0.0), (200, 11.0)]


def test_a_file_of_another_writer_in_the_same_second_is_read_first(tmp_path: Path) -> None:
    folder = tmp_path / "t000"
    folder.mkdir()
    second = int(time.time()) + 100  # a clock that was ahead
    (folder / f"events.out.tfevents.{second}.host.1234.0").touch()
    EventFile(folder).close()
    first, last = sorted(path.name for path in folder.iterdir())
    assert first.endswith("host.1234.0") and last.startswith(f"events.out.tfevents.{second + 1}.000000.")


def test_resumed_driver_drops_steps_that_the_trial_repeats(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        board = TensorBoardTrials(tmp_path)
        if value == 2.0:
            board.restart("t000", 100)
        for step in (100, 200, 300)[int(value) - 1 :]:
            board.report("t000", step, {"val/psnr": value})
        board.close()
    assert scalars(tmp_path / "t000", "val/psnr") == [(100, 1.0), (200, 2.0), (300, 2.0)]


def test_trial_that_starts_over_keeps_no_value_of_its_last_attempt(tmp_path: Path) -> None:
    """Not even that of its start, which it reports again."""
    for value in (1.0, 2.0):
        board = TensorBoardTrials(tmp_path)
        if value == 2.0:
            board.restart("t000", -1)
        for step in (0, 100):
            board.report("t000", step, {"val/psnr": value})
        board.close()
    assert scalars(tmp_path / "t000", "val/psnr") == [(0, 2.0), (100, 2.0)]


@pytest.fixture
def sweep_folder(tmp_path: Path) -> Path:
    """A sweep with a trial of every status and a control."""
    parameters = {"sinsr.inversion": Float(0.01, 10.0, log=True), "optimizer": Choice(("adam", "sgd"))}
    board = TensorBoardTrials(tmp_path, parameters, ["val/st_lpips", "val/psnr"])
    for index, status in enumerate(("finished", "stopped", "failed", "interrupted", "running")):
        trial = f"t00{index}"
        config = {"sinsr.inversion": np.float64(0.1 * (index + 1)), "optimizer": "adam", "seed": np.int64(3)}
        board.hparams(trial, config, {}, "running")
        metrics = {"val/psnr": 20.0 + index, "val/st_lpips": 0.5}
        board.report(trial, 100, metrics)
        if status != "running":
            board.hparams(trial, config, metrics, status, step=100)
    board.hparams("bicubic", {}, {"val/psnr": 19.0, "val/st_lpips": 0.7}, "control")
    board.close()
    return tmp_path


def test_the_page_lists_every_trial_that_ended_with_its_status(sweep_folder: Path) -> None:
    page = Page(sweep_folder)
    assert {name: page.status(name) for name in page.groups} == {
        "t000": "STATUS_SUCCESS",
        "t001": "STATUS_SUCCESS",
        "t002": "STATUS_FAILURE",
        "bicubic": "STATUS_SUCCESS",
    }
    statuses = {name: page.hparams(name).get("status") for name in page.groups}
    assert statuses == {
        "t000": "finished",
        "t001": "stopped",
        "t002": "failed",
        "bicubic": "control",
    }
    assert [session.name for session in page.groups["t001"].sessions] == ["t001"]  # no sub-runs


STATUSES = {"finished": "STATUS_SUCCESS", "stopped": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}


@pytest.mark.parametrize("opened", ["before it starts", "while it runs", "after its end"])
@pytest.mark.parametrize("late", ["", "running", "interrupted"])
def test_a_trial_that_ended_has_its_status_whenever_tensorboard_was_started(
    tmp_path: Path, opened: str, late: str
) -> None:
    """TensorBoard keeps the first record of a trial that it reads. A driver may also tell of a start or of an interrupt
    after an end."""
    board = TensorBoardTrials(tmp_path, {}, ["val/psnr"])
    board.hparams("bicubic", {}, {"val/psnr": 19.0}, "control")
    page = Page(tmp_path)
    for status in STATUSES:
        board.hparams(status, {"a": 1.0}, {}, "running")
        board.report(status, 100, {"val/psnr": 20.0})
    if opened == "while it runs":
        page = Page(tmp_path)
        page.reload()
    for status in STATUSES:
        board.hparams(status, {"a": 1.0}, {"val/psnr": 20.0}, status)
        if late:
            board.hparams(status, {"a": 1.0}, {}, late)
    board.close()
    if opened == "after its end":
        page = Page(tmp_path)
    page.reload()
    assert {name: page.status(name) for name in STATUSES} == STATUSES
    assert {name: page.hparams(name) for name in STATUSES} == {name: {"a": 1.0, "status": name} for name in STATUSES}


def test_page_shows_hyperparameters_and_metrics(sweep_folder: Path) -> None:
    page = Page(sweep_folder)
    settings = {"sinsr.inversion": pytest.approx(0.2), "optimizer": "adam", "seed": 3.0, "status": "stopped"}
    assert page.hparams("t001") == settings
    assert page.metrics("t001") == {"val/psnr": (100, 21.0), "val/st_lpips": (100, 0.5)}
    assert page.metrics("bicubic") == {
        "val/psnr": (0, pytest.approx(19.0)),
        "val/st_lpips": (0, pytest.approx(0.7)),
    }
    assert scalars(sweep_folder / "t001", "val/psnr") == [(100, 21.0)]  # not written twice


def test_experiment_declares_hyperparameters_and_metrics(sweep_folder: Path) -> None:
    experiment = Page(sweep_folder).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["val/st_lpips", "val/psnr"]
    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos) == {"sinsr.inversion", "optimizer", "seed", "status"}
    inversion = infos["sinsr.inversion"]
    assert inversion.type == api_pb2.DATA_TYPE_FLOAT64 and inversion.differs
    assert (inversion.domain_interval.min_value, inversion.domain_interval.max_value) == (0.01, 10.0)
    assert infos["optimizer"].type == api_pb2.DATA_TYPE_STRING
    assert not infos["seed"].differs


def test_every_type_of_a_configuration_is_shown(tmp_path: Path) -> None:
    board = TensorBoardTrials(tmp_path)
    first = {
        "a": np.float32(0.5),
        "b": True,
        "c": None,
        "d": (1, 2),
        "e": 1,
        "f": np.bool_(False),
        "g": math.inf,
    }
    second = {"a": 2, "b": np.bool_(False), "c": None, "d": [3], "e": "x", "f": None, "g": 1.0}
    board.hparams("t000", first, {"val/psnr": np.float64(math.nan)}, "failed")
    board.hparams("t001", second, {"val/psnr": np.float16(2)}, "finished")
    board.close()
    page = Page(tmp_path)
    assert page.hparams("t000") == {
        "a": 0.5, "b": True, "d": "[1, 2]", "e": 1.0, "f": False, "g": "inf", "status": "failed",
    }  # fmt: skip
    assert page.hparams("t001") == {
        "a": 2.0,
        "b": False,
        "d": "[3]",
        "e": "x",
        "g": 1.0,
        "status": "finished",
    }
    types = {info.name: api_pb2.DataType.Name(info.type) for info in page.experiment.hparam_infos}
    assert types["a"] == "DATA_TYPE_FLOAT64" and types["b"] == types["f"] == "DATA_TYPE_BOOL"
    assert types["d"] == types["e"] == "DATA_TYPE_STRING"
    assert math.isnan(page.metrics("t000")["val/psnr"][1])


def test_an_interrupted_trial_can_finish_after_a_resume(sweep_folder: Path) -> None:
    board = TensorBoardTrials(sweep_folder, {"sinsr.inversion": Float(0.01, 10.0, log=True)}, ["val/psnr"])
    config = {"sinsr.inversion": 0.4, "optimizer": "adam", "seed": 3}
    board.restart("t003", 100)
    board.hparams("t003", config, {}, "running")
    board.report("t003", 200, {"val/psnr": 30.0})
    board.hparams("t003", config, {"val/psnr": 30.0}, "finished")
    board.hparams("t002", config, {"val/psnr": 31.0}, "finished", step=300)  # it had failed
    board.close()
    page = Page(sweep_folder)
    assert (page.status("t003"), page.hparams("t003")["status"]) == ("STATUS_SUCCESS", "finished")
    assert (page.status("t002"), page.hparams("t002")["status"]) == ("STATUS_SUCCESS", "finished")
    assert page.metrics("t003")["val/psnr"] == (200, 30.0)
    assert scalars(sweep_folder / "t003", "val/psnr") == [(100, 23.0), (200, 30.0)]


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="status 'done' of t000 is not one of running, finished"):
        TensorBoardTrials(tmp_path).hparams("t000", {}, {}, "done")
