"""`--log-to`: the numbers of trials reach a tracker's own files, and a missing package is refused in one line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from sweeps.planning.settings import SweepSettings
from sweeps.planning.tracker_names import TRACKERS, check_tracker
from sweeps.recording.progress import log_to, logger
from sweeps.recording.trackers import Tracked, make_tracker
from sweeps.running.ray_cluster import connected
from sweeps.trial_config import GIVEN, ID, LABEL, PARAMETERS, SEED
from trainables.common.errors import InputError

RESULTS = (
    {"step": 0, "val/psnr": 20.0, "validation": ["cat"]},
    {"step": 50, "val/psnr": 21.5, "loss/l1": 0.25, "train/step_seconds": float("nan")},
    {"step": 100, "val/psnr": 22.5, "loss/l1": 0.125},
)


def track(tracked: Tracked, folder: Path, results: Sequence[dict[str, Any]] = RESULTS, fails: bool = False) -> None:
    """Runs a driver with one trial.

    Args:
        folder: for Tune.
    """
    config = {ID: "t003", LABEL: "", SEED: 0, GIVEN: False, PARAMETERS: {"sinsr.inversion": 0.5}}
    storage = StorageContext(str(folder), "experiment", trial_dir_name="t003")
    name = {"trial_name_creator": lambda trial: trial.config[ID]}
    trial = Trial("trial", config=config, evaluated_params=config, stub=True, storage=storage, **name)
    tracked.setup()
    tracked.on_trial_start(0, [trial], trial)
    for iteration, result in enumerate(results):
        tracked.on_trial_result(iteration, [trial], trial, result)
    (tracked.on_trial_error if fails else tracked.on_trial_complete)(3, [trial], trial)
    tracked.on_experiment_end([trial])


@pytest.mark.parametrize("name", TRACKERS)
def test_missing_package_is_refused_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / name).is_dir()])
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(InputError, match=rf"^--log-to {name}: .* pip install {name}$"):
        check_tracker(name)


def test_unknown_tracker_is_refused() -> None:
    with pytest.raises(InputError, match="--log-to comet: expected one of wandb, mlflow, aim"):
        SweepSettings("lora", log_to="comet")
    check_tracker("")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is optional, not installed")
def test_wandb_needs_a_key_unless_it_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"^--log-to wandb: no API key; .*WANDB_MODE=offline"):
        check_tracker("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracker("wandb")


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is optional, not installed")
@pytest.mark.parametrize("fails", [False, True])
def test_mlflow_has_the_numbers_at_training_steps(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # and back after the test
    run = tmp_path / "lora" / "20261121-093000"
    run.mkdir(parents=True)
    track(make_tracker("mlflow", run), tmp_path / "tune", fails=fails)

    from mlflow.tracking import MlflowClient

    client = MlflowClient((run / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("lora/20261121-093000")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("t003", "FAILED" if fails else "FINISHED")
    assert found.data.params["parameters/sinsr.inversion"] == "0.5"
    curve = [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, "val/psnr")]
    assert curve == [(0, 20.0), (50, 21.5), (100, 22.5)]
    assert set(found.data.metrics) == {"val/psnr", "loss/l1", "timesteps_total", "training_iteration"}


@pytest.mark.skipif(importlib.util.find_spec("aim") is None, reason="aim is optional, not installed")
def test_aim_has_the_numbers_at_training_steps(tmp_path: Path) -> None:
    run = tmp_path / "lora" / "20261121-093000"
    run.mkdir(parents=True)
    with connected(
        SweepSettings("lora", workers_per_trial=1, gpus_per_worker=0.0), 1
    ):  # Ray's callback asks it for a folder
        track(make_tracker("aim", run), tmp_path / "tune")

    aim = importlib.import_module("aim")
    repository = aim.Repo(str(run / "aim"))
    (name,) = repository.list_all_runs()
    found = aim.Run(name, repo=repository, system_tracking_interval=None)  # read-only needs the index of `aim up`
    assert (found.name, found.experiment) == ("t003", "lora/20261121-093000")
    assert found["hparams"]["parameters/sinsr.inversion"] == 0.5
    curves = {metric.name: metric.dataframe()[["step", "value"]].to_numpy().tolist() for metric in found.metrics()}
    assert curves["ray/tune/val/psnr"] == [[0, 20.0], [50, 21.5], [100, 22.5]]
    assert curves["ray/tune/loss/l1"] == [[50, 0.25], [100, 0.125]]
    assert not [name for name in curves if name.startswith("__system__")]


def test_tracker_that_fails_costs_a_line_and_no_more(tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("no server")

    file = log_to(tmp_path / "sweep.log")
    try:
        track(Tracked("mlflow", fail), tmp_path / "tune")
    finally:
        logger.removeHandler(file)
        file.close()
    (line,) = (tmp_path / "sweep.log").read_text().splitlines()
    assert line.endswith("--log-to mlflow: stopped (no server); the sweep goes on")
