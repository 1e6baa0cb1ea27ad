"""Records trials in the tables, in TensorBoard and on the terminal. A Tune callback, on the driver.

If the run's files cannot be written, the recorder ends the sweep: see `Recorder.stop`.
"""

from __future__ import annotations

import functools
import math
import shutil
import signal
import statistics
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback

from search_spaces import Distribution
from sweeps.formatting import setting_text
from sweeps.recording.columns import TABLED
from sweeps.recording.image_values import TEST, VALIDATION
from sweeps.recording.progress import TIMED_OUT, Progress, logger
from sweeps.recording.tables import ASKED_AGAIN, OUT_OF_TIME, RunTables, confirming, has_ended
from sweeps.recording.tensorboard import TensorBoardTrials
from sweeps.recording.trial_errors import how_it_ended, last_line
from sweeps.recording.trial_files import catch_up, shown_metrics, shown_scalars, write_params
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, LABEL, PARAMETERS, SEARCHED, SEED, TRIAL
from trainables.common.errors import one_line
from trainables.metrics.names import test_name
from trainables.training.checkpoint_folders import drop_older, newest_name
from trainables.training.measurements import Validation
from trainables.training.pictures import PICTURES
from trainables.training.results import (
    BEST,
    CHECKPOINT,
    DAMAGED,
    DIVERGED,
    FAILED,
    LOSSES,
    NOT_WRITTEN,
    REPEATED,
    kept_values,
    take_validation,
)

MAX_FAILURES = 2
"""Restarts of a trial, from its last checkpoint, without a new checkpoint in between."""


@dataclass(frozen=True)
class RecorderSettings:
    """Settings of a run's recorder. Plain values, so that Tune can pickle them with the run.

    Attributes:
        folder: the run's folder.
        metrics: all metrics, the objective first.
        parameters: dotted hyperparameter name -> its distribution.
        max_steps: training steps of a finished trial of the search.
        trials: number of trials of the sweep, with those of the confirmation.
        given: number of trials that always run all steps: points of the space, and the confirmation.
        concurrent: trials that run at once.
        seed: seed of the sweep.
        shown: metrics on the terminal's line of a report.
        confirm_steps: training steps of a finished trial of the confirmation; 0 for those of the search.
    """

    folder: str
    metrics: tuple[str, ...]
    parameters: Mapping[str, Distribution]
    max_steps: int
    trials: int
    given: int
    concurrent: int
    seed: int
    shown: tuple[str, ...]
    confirm_steps: int = 0


def _stopping(method: Callable[..., None]) -> Callable[..., None]:
    """A callback that ends the sweep if the run's files cannot be written, and does nothing once it is ending."""

    @functools.wraps(method)
    def guarded(self: Recorder, *args: Any, **kwargs: Any) -> None:
        if self.stopped:
            return
        try:
            method(self, *args, **kwargs)
        except OSError as error:
            self.stop(f"{self.settings.folder}: cannot be written ({one_line(error.strerror or error)})")

    return guarded


class Recorder(Callback):
    """Keeps a run's files up to date.

    Args:
        ended: called with the id of a trial that has finished or was stopped, of which only the newest checkpoint is
            needed; by default it removes the others from the run's folder.
        newest: trial id -> name of its newest checkpoint, or an empty text; by default that in the run's folder.

    Attributes:
        stopped: the reason why the sweep must end before its trials have; empty if there is none.
    """

    def __init__(
        self,
        settings: RecorderSettings,
        ended: Callable[[str], None] | None = None,
        newest: Callable[[str], str] | None = None,
    ) -> None:
        self.settings, self._trials = settings, Path(settings.folder) / "trials"
        self._drop_older = ended or (lambda id: drop_older(self._trials / id))
        self._newest = newest or (lambda id: newest_name(self._trials / id))
        self.stopped = ""
        self._ready = False
        self._live: dict[str, Any] = {}
        self._out_of_time: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; nothing of this is read again

    def stop(self, reason: str) -> None:
        """Ends the sweep as Ctrl-C does. The trials that run count as interrupted."""
        if not self.stopped:
            self.stopped = reason
            signal.raise_signal(signal.SIGINT)

    def out_of_time(self, id: str) -> None:
        """The scheduler stops a trial because the time budget is over, and not because others are better."""
        self._out_of_time.add(id)

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        self.open()

    def open(self, began: float | None = None, spent: float = 0.0) -> None:
        """Opens the run's files and reads their contents; once.

        Args:
            began: when this driver's time began, in `time.monotonic()`; None to record no time.
            spent: seconds of earlier drivers, for a run that did not record them.
        """
        if self._ready:
            return
        settings = self.settings
        self._silent: set[str] = set()
        """Trials that were started again and have not reported since; the step at which they continue is unknown."""
        self._earlier: dict[str, float] = {}
        """Seconds that a trial had taken before it was started again."""
        self._checkpoints: dict[str, str] = {}
        """Trial -> its newest checkpoint, from which on its failures count."""
        self.tables = RunTables(settings.folder).load()
        if began is not None:
            self.tables.drivers.begin(began, spent)
        for note in self.tables.notes:
            logger.info("note       %s", note)
        self.board = TensorBoardTrials(self._trials, settings.parameters, settings.metrics)
        self.progress = Progress(
            settings.trials, settings.given, settings.max_steps, settings.concurrent, settings.shown
        )
        confirmed = confirming(self.tables.leaderboard)
        for row in self.tables.leaderboard:
            catch_up(self._trials, self.board, row, self.tables.reports_of, settings.metrics)
            if row["status"] == "running":  # the driver that wrote this was killed
                self.tables.upsert_trial({"id": row["id"], "status": "interrupted"})
            elif row["kind"] != "control" and has_ended(row, confirmed, settings.confirm_steps):
                whole = bool(row["label"]) or row["kind"] == CONFIRMATION
                status = TIMED_OUT if row.get(OUT_OF_TIME) else row["status"]
                self.progress.known(row["id"], row["label"], whole, row["steps"], status)
        self._set_aside_unknown()
        self.tables.flush(force=True)
        self._ready = True

    def repeat(self, ids: Iterable[str]) -> None:
        """Trials that have finished are to train again. Their numbers stay until they report."""
        for id in ids:
            self.tables.upsert_trial({"id": id, "status": "interrupted", ASKED_AGAIN: True})
            self.progress.forget(id)

    def _set_aside_unknown(self) -> None:
        """Moves the folders of trials that are in no record out of the way: a trial of the same id may have other
        parameters, and must not continue from their checkpoints.
        """
        for folder in sorted(self._trials.glob("*/")):
            if not self.tables.has_trial(folder.name) and list(folder.glob("**/checkpoint_*")):
                aside = self._trials.with_name("unknown_trials") / folder.name
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                folder.rename(aside)
                logger.info("note       %s: not in this run's record; moved to %s", folder.name, aside)

    def close(self) -> None:
        """Records the time of this driver, as far as its files can be written."""
        if self._ready:
            with suppress(OSError):
                self.tables.commit(force=True)

    def controls(self, tested: bool) -> set[str]:
        """The recorded controls, with the values of all their images."""
        splits = {VALIDATION: "val", TEST: "test"} if tested else {VALIDATION: "val"}
        return {
            row["id"]
            for row in self.tables.leaderboard
            if row["kind"] == "control"
            and all(
                row.get(f"{prefix}/psnr") is not None and self.tables.has_images(row["id"], split)
                for split, prefix in splits.items()
            )
        }

    def control(self, name: str, validation: Validation, test: Validation | None = None) -> None:
        """Records a control."""
        means = validation.means | (test.test_means if test else {})
        folder = self._trials / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, measured in {VALIDATION: validation, TEST: test}.items():  # first: with its row it counts as known
            if measured is not None and measured.pictures is not None:
                measured.pictures.write(folder / PICTURES[split])
        self.tables.upsert_trial({"id": name, "kind": "control", "status": "control", **means})
        self._add_images(name, 0, validation, test)
        self._show_images(name, 0, validation, test, "restored")
        self.board.hparams(name, {KIND: "control"}, means, "control", step=0)
        self.tables.flush(force=True)

    @_stopping
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config, id = trial.config, trial.config[ID]
        known = self.tables.has_trial(id)
        self._introduce(trial)
        if known:
            self._silent.add(id)
            self._progressed(trial, self._newest(id))  # written between two reports, or before the first one
            self._earlier[id] = max((row.get("wall_seconds") or 0.0 for row in self.tables.reports_of(id)), default=0.0)
        self.board.hparams(id, self._hparams(config), {}, "running")
        name = config[LABEL] or ", ".join(
            f"{k.split('.')[-1]} {setting_text(v)}" for k, v in config[PARAMETERS].items()
        )
        if config[SEED]:
            name += f", seed {self.settings.seed + config[SEED]}"
        if config.get(KIND) == CONFIRMATION:
            name += ", confirmation"
        self._live[id] = trial
        self.progress.started(id, name, config[GIVEN], again=known, whole=self._whole(config))
        self.tables.flush()

    def _progressed(self, trial: Any, checkpoint: str) -> None:
        """Failures count from the last checkpoint on, however long the trial."""
        if checkpoint and checkpoint != self._checkpoints.get(trial.config[ID]):
            self._checkpoints[trial.config[ID]] = checkpoint
            trial.max_failures = trial.num_failures + MAX_FAILURES

    def _introduce(self, trial: Any) -> None:
        """Records a trial's settings: its row, and its params.json."""
        config, id = trial.config, trial.config[ID]
        self.tables.upsert_trial(
            {
                "id": id,
                "kind": config.get(KIND, TRIAL),
                "status": "running",
                "error": "",
                "label": config[LABEL],
                "seed": self.settings.seed + config[SEED],
                **({SEARCHED: config[SEARCHED]} if SEARCHED in config else {}),
                **{f"config/{name}": value for name, value in config[PARAMETERS].items()},
            }
        )
        write_params(self._trials / id, config[LABEL], self._hparams(config))

    @_stopping
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        id = trial.config[ID]
        if NOT_WRITTEN in result:
            self.stop(result[NOT_WRITTEN])
        if FAILED in result or self.stopped:
            return
        repeated = result[REPEATED]
        for line in result[DAMAGED]:
            logger.info("%s %s", id, line)
        if id in self._silent:
            self._silent.discard(id)
            kept = result["step"] if repeated else -1  # a trial that starts over may report its start again
            self.board.restart(id, kept)
            self.progress.continued(id, max(0, kept))
        validation, test = take_validation(result)
        kept = result[BEST][0] if BEST in result else result["step"]
        known = repeated and self.tables.has_report(id, result["step"])
        if known and self._has_all(id, result["step"], kept, test is not None):
            if result[CHECKPOINT]:  # it may be a later one, written between two reports
                self.tables.upsert_trial({"id": id, "checkpoint": f"trials/{id}/{result[CHECKPOINT]}"})
            return
        values = {name: value for name, value in result.items() if name.startswith(TABLED)}
        seconds = self._earlier.get(id, 0.0) + result["time_total_s"]
        if not known:
            self.tables.add_report({"id": id, "step": result["step"], "wall_seconds": seconds, **values})
        reports = self.tables.reports_of(id)
        trained = result["step"] > 0
        times = [s for row in reports if (s := row.get("train/step_seconds")) is not None]
        self.tables.upsert_trial(
            {
                "id": id,
                "steps": result["step"],
                "wall_seconds": seconds,
                # Not the mean: other trials start and end meanwhile, and slow down some reports.
                "step_seconds": statistics.median(times) if trained and times else None,
                "trained_parameters": _count(reports) if trained else None,
                "busy_seconds": math.fsum(row.get("train/busy_seconds") or 0.0 for row in reports),
                "checkpoint": f"trials/{id}/{result[CHECKPOINT]}" if result[CHECKPOINT] else "",
                **({"best_step": kept} if BEST in result else {}),
                **{name: value for name, value in kept_values(result).items() if name.startswith(("val/", "test/"))},
                **self._decided(trial, result),
            }
        )
        self._add_images(id, kept, validation, test)
        self._progressed(trial, result[CHECKPOINT])
        if not known:
            self.board.losses(id, [(step, row) for step, row in result.pop(LOSSES)])
            self.board.report(id, result["step"], shown_scalars(values))
        self._show_images(id, kept, validation, test, "input | output | target")
        self.progress.reported(id, result["step"], values)
        self.tables.flush()

    @_stopping
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.tables.flush()  # what was too soon after the last write

    @_stopping
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        if FAILED in result:
            if result.get(DIVERGED):
                self.tables.upsert_trial({"id": trial.config[ID], DIVERGED: True})
            self._end(trial, "failed", result[FAILED])
        else:
            self._end(trial, self._status(trial, result.get("step", 0)))

    @_stopping
    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.waits(trial.config[ID], how_it_ended(trial))

    @_stopping
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._failed(trial)

    def _failed(self, trial: Any) -> None:
        if not self.tables.has_trial(trial.config[ID]):  # its process never started
            self._introduce(trial)
        self._end(trial, "failed", last_line(trial))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        try:
            # Uses our own list of running trials: Tune marks interrupted trials as terminated.
            for id, trial in list(self._live.items()):
                status = self.tables.trial(id)["status"]  # its last report may have said how it ends
                self._end(trial, "interrupted" if status == "running" else status)
            # Tune does not always call a callback for a trial whose process could not be started.
            failed = {row["id"] for row in self.tables.leaderboard if row["status"] == "failed"}
            for trial in trials:
                if trial.status == trial.ERROR and trial.config[ID] not in failed:
                    self._failed(trial)
            self.board.close()
            self.tables.flush(force=True)
        except OSError as error:  # the next driver finds them as running, and marks them as interrupted
            self.stopped = self.stopped or f"{self.settings.folder}: cannot be written ({one_line(error)})"

    def _end(self, trial: Any, status: str, why: str = "") -> None:
        id = trial.config[ID]
        self._live.pop(id, None)
        ended = self._ended(id, status)
        self.tables.upsert_trial({"id": id, "error": why, **ended})
        if status in ("finished", "stopped"):
            self._drop_older(id)
        metrics = shown_metrics(self.tables.trial(id), self.settings.metrics)
        self.board.hparams(id, self._hparams(trial.config), metrics, status)
        self.tables.flush()
        self.progress.ended(id, TIMED_OUT if ended.get(OUT_OF_TIME) else status, why)

    def _decided(self, trial: Any, result: Mapping[str, Any]) -> dict[str, Any]:
        """How a trial ends if this report is its last one. One commit holds both: after a report alone, a trial that
        ASHA stops would train on, because at each rung it is judged once.
        """
        if not result.get("done"):
            return {}
        return self._ended(trial.config[ID], self._status(trial, result["step"]))

    def _status(self, trial: Any, step: int) -> str:
        """Of a trial that ends after this step without a failure."""
        return "finished" if step >= self._whole(trial.config) else "stopped"

    def _ended(self, id: str, status: str) -> dict[str, Any]:
        """Columns of a trial that has ended."""
        timed_out = status == "stopped" and id in self._out_of_time
        # The column exists only where a time budget stopped a trial.
        cause = {OUT_OF_TIME: timed_out} if timed_out or self.tables.trial(id).get(OUT_OF_TIME) else {}
        return {"status": status, **cause}

    def _whole(self, config: Mapping[str, Any]) -> int:
        """The steps of a whole trial."""
        longer = self.settings.confirm_steps if config.get(KIND) == CONFIRMATION else 0
        return longer or self.settings.max_steps

    def _hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **config[PARAMETERS],
            "seed": self.settings.seed + config[SEED],
            KIND: config.get(KIND, TRIAL),
        }

    def _has_all(self, id: str, step: int, kept: int, tested: bool) -> bool:
        """Whether all that a report gives is in the record, and not only its own line."""
        splits = (VALIDATION, TEST) if tested else (VALIDATION,)
        return (self.tables.trial(id).get("steps") or 0) >= step and all(
            self.tables.has_images(id, split, kept) for split in splits
        )

    def _add_images(self, id: str, step: int, validation: Validation, test: Validation | None) -> None:
        """Records the values of images; those of test images, if there are any, under the names of test metrics."""
        self.tables.add_images(id, VALIDATION, step, validation.images, validation.per_image)
        if test is not None:
            values = {test_name(name): of_images for name, of_images in test.per_image.items()}
            self.tables.add_images(id, TEST, step, test.images, values)

    def _show_images(self, id: str, step: int, validation: Validation, test: Validation | None, tag: str) -> None:
        self.board.images(id, step, tag, validation.grid)
        if test is not None:
            self.board.images(id, step, "test: input | output | target", test.grid)


def _count(reports: list[dict[str, Any]]) -> int | None:
    """The number of trained parameters. A report that version 0.1 kept in a checkpoint does not have it."""
    counts = [int(row["train/parameters"]) for row in reports if row.get("train/parameters") is not None]
    return counts[-1] if counts else None
