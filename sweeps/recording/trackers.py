"""Metrics, loss terms and times of every report to an experiment tracker, through Ray's own callbacks: `--log-to`.

The callbacks run on the driver, after the recorder has taken pictures and values per image out of a result. A tracker
never ends a sweep: one that fails costs a line in the log, and is not called again.

| tracker | where it writes |
|---|---|
| Weights & Biases | its server, or with WANDB_MODE=offline `wandb/` in the run's folder; project WANDB_PROJECT |
| MLflow | MLFLOW_TRACKING_URI, or `mlflow/` in the run's folder |
| Aim | `aim/` in the run's folder |
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.logger import LoggerCallback
from ray.tune.result import TIMESTEPS_TOTAL, TRAINING_ITERATION

from sweeps.recording.columns import TABLED
from sweeps.recording.progress import logger
from trainables.common.errors import one_line
from trainables.common.version import PROJECT


def make_tracker(name: str, run: Path) -> Tracked:
    """The callback of a tracker for Tune.

    Args:
        name: one of `sweeps.planning.tracker_names.TRACKERS`; its package is installed.
        run: the run's folder, results/<space>/<run>.
    """
    return Tracked(name, lambda: _MAKERS[name](run.resolve()))


def _wandb(run: Path) -> LoggerCallback:
    (run / "wandb").mkdir(exist_ok=True)
    module = importlib.import_module("ray.air.integrations.wandb")
    project, mode = os.environ.get("WANDB_PROJECT", PROJECT), os.environ.get("WANDB_MODE")
    # The mode is passed on, because the processes of a cluster have another environment.
    made: LoggerCallback = module.WandbLoggerCallback(project=project, group=_title(run), dir=str(run), mode=mode)
    return made


def _mlflow(run: Path) -> LoggerCallback:
    place = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not place:
        place = (run / "mlflow").as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 prefers a database, and wants to be told
    module = importlib.import_module("ray.air.integrations.mlflow")
    made: LoggerCallback = module.MLflowLoggerCallback(tracking_uri=place, experiment_name=_title(run))
    return made


def _aim(run: Path) -> LoggerCallback:
    (run / "aim").mkdir(exist_ok=True)
    repository = importlib.import_module("aim").Repo(str(run / "aim"), init=True)
    module = importlib.import_module("ray.tune.logger.aim")
    # Without these two, Aim would record the driver's processor and output as those of each trial.
    only_trials = {"system_tracking_interval": None, "capture_terminal_logs": False}
    made: LoggerCallback = module.AimLoggerCallback(repo=repository, experiment_name=_title(run), **only_trials)
    return made


_MAKERS: dict[str, Callable[[Path], LoggerCallback]] = {"wandb": _wandb, "mlflow": _mlflow, "aim": _aim}


def _title(run: Path) -> str:
    return f"{run.parent.name}/{run.name}"


class Tracked(Callback):
    """A tracker's callback that sees only numbers, at training steps.

    Args:
        name: of the tracker, for the log.
        make: makes Ray's callback.
    """

    def __init__(self, name: str, make: Callable[[], LoggerCallback]) -> None:
        self._name, self._make = name, make
        self._tracker: LoggerCallback | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; nothing of this is read again

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        def open_tracker() -> None:
            tracker = self._make()
            tracker.setup(stop, num_samples, total_num_samples, **info)
            self._tracker = tracker

        self._guarded(open_tracker)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        def begin(tracker: LoggerCallback) -> None:
            if self._name == "wandb":  # its process of this trial starts in Tune's folder of the trial
                trial.init_local_path()
            tracker.log_trial_start(trial)
            if self._name == "aim":  # which would name it by a random hash
                vars(tracker)["_trial_to_run"][trial].name = str(trial)

        self._tell(begin)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        numbers = {name: value for name, value in result.items() if name.startswith(TABLED) and _is_number(value)}
        if numbers:
            at = {TRAINING_ITERATION: result["step"], TIMESTEPS_TOTAL: result["step"]}
            self._tell(lambda tracker: tracker.log_trial_result(iteration, trial, {**numbers, **at}))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(lambda tracker: tracker.log_trial_end(trial, failed=False))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(lambda tracker: tracker.log_trial_end(trial, failed=True))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._tell(lambda tracker: tracker.on_experiment_end(trials, **info))

    def _tell(self, call: Callable[[LoggerCallback], Any]) -> None:
        if (tracker := self._tracker) is not None:
            self._guarded(lambda: call(tracker))

    def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except Exception as error:  # of its package or its server: many types
            self._tracker = None
            logger.info("note       --log-to %s: stopped (%s); the sweep goes on", self._name, one_line(error))


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
