"""Runs a sweep: prepares data, measures the controls, trains the trials and writes the answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sweeps.answering import finish
from sweeps.planning.plan import Plan
from sweeps.planning.run_folder import LOG, RunFolder, create_run
from sweeps.recording import recorder as recorder_module
from sweeps.recording.progress import log_to, logger
from sweeps.recording.recorder import Recorder, RecorderSettings
from sweeps.recording.tables import HISTORY
from sweeps.running import search as search_module
from sweeps.running.preparation import prepare_stores
from sweeps.running.ray_cluster import connected, tune_interrupts, workers
from sweeps.running.search import SweepScheduler, SweepSearch
from sweeps.trial_config import CONFIRMATION, ID, KIND, PARAMETERS, SEED
from trainables.common.command import ExitStatus
from trainables.common.units import duration
from trainables.data.prepared import open_stores
from trainables.settings.methods import METHODS
from trainables.training.controls import measure_controls
from trainables.training.launch import Job, launch, trial_resources
from trainables.training.validation import TEST_DRAW, Validation

_TUNE_STATE = "experiment_state-*.json"  # without it, Tune has nothing to resume
RENAMED = {"sweeps.recorder": recorder_module, "sweeps.search": search_module}
"""Module names of version 0.1: Tune pickles a run's searcher, scheduler and callbacks by module name."""
MAX_FAILURES = 2  # restarts of a trial whose process died, from its last checkpoint


def start(plan: Plan) -> int:
    """Runs a new sweep; returns the exit status."""
    with connected(plan.question.settings) as concurrent:
        folder = create_run(plan.question, plan.metrics, plan.objective, plan.stores)
        try:
            return _run(plan, folder, concurrent)
        finally:
            folder.close()


def resume(plan: Plan, folder: RunFolder) -> int:
    """Continues an interrupted run from its last checkpoints; returns the exit status."""
    with connected(plan.question.settings) as concurrent:
        return _run(plan, folder, concurrent)


def _run(plan: Plan, folder: RunFolder, concurrent: int) -> int:
    started = time.monotonic()
    file = log_to(folder.path / LOG)
    try:
        for line in plan.text().splitlines():
            logger.info("%s", line)
        logger.info("%-10s %s", "results", folder.path)
        recorder = Recorder(_recorder_settings(plan, folder, concurrent))
        recorder.open()
        held = prepare_stores(plan, concurrent)
        _measure_controls(plan, recorder)
        _tune(plan, folder, concurrent, recorder)
        held.clear()
        status = finish.finish(plan, folder.path)
        logger.info("%s after %s", "done" if status == 0 else "stopped", duration(time.monotonic() - started))
        return status
    except KeyboardInterrupt:
        logger.info("interrupted; continue with: %s", finish.resume_line(folder.path))
        return ExitStatus.INTERRUPTED
    finally:
        logger.removeHandler(file)
        file.close()


def _recorder_settings(plan: Plan, folder: RunFolder, concurrent: int) -> RecorderSettings:
    question = plan.question
    return RecorderSettings(
        folder=str(folder.path.resolve()),
        metrics=plan.reported,
        parameters=question.space.distributions,
        max_steps=question.trial.training.max_steps,
        trials=question.trials + plan.confirmation_trials,
        given=len(question.space.points[: question.trials]) + plan.confirmation_trials,
        concurrent=min(concurrent, question.trials),
        seed=question.trial.training.seed,
        shown=tuple(dict.fromkeys((plan.objective, "val/psnr"))),
    )


def _somewhere(plan: Plan, work: Callable[[str], Any]) -> Any:
    """Runs `work` here; on a cluster or with GPUs, as a Ray task with the resources of one worker."""
    each = workers(plan.question.settings)
    if not plan.question.settings.address and not each.gpus:
        return work("cpu")
    device = "cuda" if each.gpus else "cpu"
    task = ray.remote(num_cpus=each.cpus, num_gpus=each.gpus)(work)
    return ray.get(task.remote(device))


def _measure_controls(plan: Plan, recorder: Recorder) -> None:
    splits = ("val", "test") if plan.confirms else ("val",)
    known = {
        row["id"]
        for row in recorder.tables.leaderboard
        if all(row.get(f"{split}/psnr") is not None for split in splits)
    }
    names = [name for name in plan.question.space.controls if name not in known]
    if not names:
        return
    # The control "autoencoder" needs a latent method, even if the baseline is not one.
    trials = plan.question.every_method
    trial = next((trial for trial in trials if METHODS[trial.method].latents), trials[0])
    stages = [stage for stage in plan.stages_of[trial.method] if stage.split != "train"]
    if not METHODS[trial.method].latents:
        names = [name for name in names if name != "autoencoder"]
    metrics = plan.metrics

    def measure(device: str) -> tuple[dict[str, Validation], dict[str, Validation]]:
        prepared = open_stores(trial, stages)
        validation = measure_controls(names, trial, prepared, metrics, device)
        if prepared.test is None:
            return validation, {}
        return validation, measure_controls(names, trial, prepared.test, metrics, device, draw=TEST_DRAW)

    logger.info("controls   loading networks, then measuring %s", ", ".join(names))
    measured, tested = _somewhere(plan, measure)
    for name, result in measured.items():
        recorder.control(name, result, tested.get(name))
        shown = "  ".join(f"{m.removeprefix('val/')} {result.means[m]:.4g}" for m in recorder.settings.shown)
        logger.info("control    %-12s %s", name, shown)


def _tune(plan: Plan, folder: RunFolder, concurrent: int, recorder: Recorder) -> None:
    """Runs all trials that have not ended; returns when they have, or when interrupted."""
    question, training = plan.question, plan.question.trial.training
    trainable = _trainable(plan, folder.trials.resolve())
    path, journal = str(folder.trials.resolve()), folder.path.resolve() / "optuna.journal"
    sys.modules.update(RENAMED)
    if tune.Tuner.can_restore(path) and any(folder.trials.glob(_TUNE_STATE)):
        tuner = tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True, resume_errored=True)
    else:
        # If a driver was killed before Tune's first saved state, the points are queued but none has run.
        journal.unlink(missing_ok=True)
        mode = plan.direction
        search = SweepSearch(
            question.space,
            plan.objective,
            mode,
            question.settings.seed,
            question.trials,
            training.max_steps,
            journal,
            question.confirmation if plan.confirms else None,
        )
        scheduler = SweepScheduler(
            plan.objective,
            mode,
            training.max_steps,
            training.report_every,
            question.settings.reduction_factor,
            folder.path.resolve() / HISTORY,
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=question.trials + plan.confirmation_trials,
                max_concurrent_trials=min(concurrent, question.trials),
                reuse_actors=question.settings.workers_per_trial == 1,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=folder.trials.name,
                storage_path=str(folder.path.resolve()),
                callbacks=[recorder],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=0,
            ),
        )
    logger.info("trials     starting processes")
    with tune_interrupts():
        tuner.fit()


def _trial_id(trial: Any) -> str:
    return str(trial.config[ID])


def _trainable(plan: Plan, trials: Path) -> Any:
    """The function that Tune calls for each trial: validates its config and launches it."""
    question, metrics, stages_of = plan.question, plan.metrics, plan.stages_of
    group = workers(question.settings)

    def trial(config: dict[str, Any]) -> None:
        settings = question.trial_with(config[PARAMETERS], config[SEED])
        tested = config.get(KIND) == CONFIRMATION  # the search must not see the test photographs
        stages = tuple(stage for stage in stages_of[settings.method] if tested or stage.split != "test")
        launch(Job(settings, stages, metrics, group, str(trials / config[ID])))

    return tune.with_resources(trial, trial_resources(group))
