"""Runs a sweep: prepares data, measures the controls, trains the trials and writes the answer."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError

from sweeps.answering import finish
from sweeps.answering.live import LiveReport
from sweeps.planning.plan import Plan
from sweeps.planning.plan_text import plan_text
from sweeps.planning.run_bucket import place_of, trial_folder
from sweeps.planning.run_files import LOG
from sweeps.planning.run_folder import RunFolder, create_run
from sweeps.planning.settings import SweepSettings
from sweeps.recording.progress import log_to, logger
from sweeps.recording.recorder import MAX_FAILURES, Recorder, RecorderSettings
from sweeps.recording.terminal import live_view
from sweeps.recording.trackers import make_tracker
from sweeps.running.capacity import may_grow
from sweeps.running.clock import Clock, Deadline, for_trials
from sweeps.running.failing_nodes import FailingNodes
from sweeps.running.last_checkpoints import LastCheckpoints
from sweeps.running.preparation import prepare_stores, preparing_beside
from sweeps.running.ray_cluster import connected, tune_interrupts, workers
from sweeps.running.repeating import repeat_lost
from sweeps.running.scheduler import SweepScheduler
from sweeps.running.search import SweepSearch
from sweeps.running.warm_start import Earlier, write_trials
from sweeps.trial_config import AVOIDED, CONFIRMATION, ID, KIND, PARAMETERS, SEED
from trainables.common.command import ExitStatus
from trainables.common.devices import device_for
from trainables.common.errors import InputError, one_line
from trainables.common.machine import limit_threads
from trainables.common.paths import is_uri
from trainables.common.units import duration
from trainables.data.prepared import open_stores
from trainables.data.ray_pipeline import check_shared
from trainables.settings.methods import METHODS
from trainables.training.controls import LATENT_CONTROLS, Measured, measure_controls
from trainables.training.job import Job
from trainables.training.launch import launch, trial_resources
from trainables.training.measurements import KeptBy


class _Lost:
    """Tells that Ray has ended, and how to continue once there is a run."""

    folder: Path | None = None

    def __init__(self, settings: SweepSettings) -> None:
        self._settings = settings

    def __call__(self, reason: str) -> None:
        logger.error("stopped: %s", reason)
        if self.folder:
            logger.error("continue with: %s", finish.resume_line(self.folder, self._settings))


def start(plan: Plan, warm: Sequence[Earlier] = (), opened: Callable[[Path], None] = lambda folder: None) -> int:
    """Runs a new sweep; returns the exit status.

    Args:
        warm: trials of another run, which only the sampler sees.
        opened: called with the folder of the run, once it exists.
    """
    lost, began = _Lost(plan.question.settings), time.monotonic()
    with connected(plan.question.settings, plan.most_at_once, lost) as concurrent:
        _check_results(plan, plan.question.settings.results)
        objectives = [one.metric for one in plan.objectives]
        folder = create_run(
            *(plan.question, plan.metrics, objectives, plan.stores, plan.store),
            keep=lambda folder: write_trials(folder, warm),
        )
        lost.folder = folder.path
        opened(folder.path)
        try:
            return _run(plan, folder, concurrent, warm, began)
        finally:
            folder.close()


def resume(plan: Plan, folder: RunFolder, warm: Sequence[Earlier] = (), *, repeat: bool = False) -> int:
    """Continues a run from its last checkpoints; returns the exit status.

    If its limit of time or money is used up, nothing starts, not even Ray: the run answers from the trials it has.

    Args:
        repeat: whether finished trials without a whole checkpoint train again.

    Raises:
        InputError: they are to train again, and there is no time for it.
    """
    lost, began = _Lost(plan.question.settings), time.monotonic()
    lost.folder = folder.path
    if not _has_time(plan):
        if repeat:
            raise InputError("--repeat-lost: the run's time or money is used up; give more, such as --time-budget 1h")
        return _run(plan, folder, 0, warm, began)
    with connected(plan.question.settings, plan.most_at_once, lost) as concurrent:
        _check_results(plan, place_of(folder.path))
        return _run(plan, folder, concurrent, warm, began, repeat=repeat)


def _check_results(plan: Plan, folder: str) -> None:
    """Nodes that join later are checked by their trials."""
    if plan.question.settings.address and not is_uri(folder):
        check_shared(str(Path(folder).expanduser().absolute()), "--results", "one that all share")


def _has_time(plan: Plan) -> bool:
    """Whether earlier commands have left time for trials."""
    return plan.spent < for_trials(plan.question.settings.seconds)


def _run(
    plan: Plan,
    folder: RunFolder,
    concurrent: int,
    warm: Sequence[Earlier],
    began: float,
    *,
    repeat: bool = False,
) -> int:
    started, has_time, settings = time.monotonic(), _has_time(plan), plan.question.settings
    deadline = Deadline(plan.seconds_left if has_time else math.inf, began)
    file = log_to(folder.path / LOG)
    limit_threads()  # controls and the report's pictures are computed here
    recorder = Recorder(_recorder_settings(plan, folder, concurrent), folder.trial_ended, folder.newest_name)
    live = LiveReport(plan, folder.path, recorder)
    try:
        for line in plan_text(plan).splitlines():
            logger.info("%s", line)
        logger.info("%-10s %s", "results", folder.bucket.run if folder.bucket else folder.path)
        if folder.bucket:
            logger.info("%-10s %s", "copy", folder.path)
        folder.clear_scratch()
        recorder.open(began, plan.spent)
        repeat_lost(folder, recorder, asked=repeat)
        for id in folder.go_on_in_bucket(recorder.tables.leaderboard):
            logger.info("note       %s: not in this run's record; its checkpoints are in unknown_trials", id)
        folder.start_uploading(recorder.stop, _upload_line)
        with deadline:
            held = []
            if has_time:
                held = prepare_stores(plan, concurrent)
            with preparing_beside(plan, concurrent, held, recorder.stop) if has_time else nullcontext():
                if has_time:
                    _measure_controls(plan, recorder)
                    live.update()
                search = _tune(plan, folder, concurrent, recorder, live, deadline, warm, began)
        held.clear()
        if recorder.stopped:
            return _stopped(folder, recorder.stopped, live, settings)
        if search.closed:
            logger.info("note       the time budget left room for %d of %d trials", search.searched, search.trials)
        folder.sync()  # before the report: the pictures of trials come from the bucket
        # Interrupted while a process starts, Tune has taken trials that never began.
        left = search.expected + sum(not recorder.tables.has_trial(id) for id in search.handed_out)
        again, over = sum(map(recorder.tables.has_trial, search.waiting)), deadline.over or not has_time
        status = finish.finish(plan, folder.path, folder.newest, left, search.searched, again, over)
        folder.sync()
        words = {ExitStatus.DONE: "done", ExitStatus.FAILED: "failed"}.get(ExitStatus(status), "stopped")
        rows = [row for row in recorder.tables.leaderboard if row["kind"] != "control"]
        failed = sum(row["status"] == "failed" for row in rows)
        more = f"; {failed} of {len(rows)} trials failed" if failed else ""
        logger.info("%s after %s%s", words, duration(time.monotonic() - started), more)
        return status
    except KeyboardInterrupt:
        if recorder.stopped:
            return _stopped(folder, recorder.stopped, live, settings)
        logger.info("interrupted; continue with: %s", finish.resume_line(folder.path, settings, deadline.over))
        return ExitStatus.INTERRUPTED
    except (OSError, RayError, TuneError) as error:
        # Tune's own error is a traceback as text; its last line is the cause.
        file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))
        return _stopped(folder, _last_line(error), live, settings)
    finally:
        recorder.close()
        folder.clear_scratch()
        logger.removeHandler(file)
        file.close()


def _upload_line(line: str) -> None:
    logger.info("upload     %s", line)


def _stopped(folder: RunFolder, reason: str, live: LiveReport, settings: SweepSettings) -> int:
    """The sweep cannot go on, for a reason outside of its trials."""
    line = finish.resume_line(folder.path, settings)
    live.stopped(f"Stopped: {reason}. Continue with: {line}")
    logger.error("stopped: %s", reason)
    logger.error("continue with: %s", line)
    return ExitStatus.FAILED


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else error)


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
        shown=tuple(dict.fromkeys((*(one.metric for one in plan.objectives), "val/psnr"))),
        confirm_steps=question.confirm_steps,
    )


def _somewhere(plan: Plan, work: Callable[[str], Any]) -> Any:
    """Runs `work` here; on a cluster or with GPUs, as a Ray task with the resources of one worker."""
    each = workers(plan.question.settings)
    if not plan.question.settings.address and not each.gpus:
        return work("cpu")
    device = device_for(each.gpus)
    task = ray.remote(num_cpus=each.cpus, num_gpus=each.gpus)(work)
    return ray.get(task.remote(device))


def _measure_controls(plan: Plan, recorder: Recorder) -> None:
    known = recorder.controls(tested=plan.confirms)
    names = [name for name in plan.question.space.controls if name not in known]
    if not names:
        return
    # Controls with an autoencoder need a latent method, even if the baseline is not one.
    trials = plan.question.every_method
    trial = next((trial for trial in trials if METHODS[trial.method].latents), trials[0])
    stages = [stage for stage in plan.stages_of[trial.method] if stage.split != "train"]
    if not METHODS[trial.method].latents:
        names = [name for name in names if name not in LATENT_CONTROLS]
    metrics = plan.metrics

    def measure(device: str) -> dict[str, Measured]:
        return measure_controls(names, trial, open_stores(trial, stages), metrics, device)

    logger.info("controls   loading networks, then measuring %s", ", ".join(names))
    for name, result in _somewhere(plan, measure).items():
        recorder.control(name, *result)
        shown = "  ".join(
            f"{m.removeprefix('val/')} {result.validation.means[m]:.4g}"
            for m in recorder.settings.shown
            if m in result.validation.means
        )
        logger.info("control    %-12s %s", name, shown)


def _tune(
    plan: Plan,
    folder: RunFolder,
    concurrent: int,
    recorder: Recorder,
    live: LiveReport,
    deadline: Deadline,
    warm: Sequence[Earlier],
    began: float,
) -> SweepSearch:
    """Runs all trials that have not ended; returns when they have, or when interrupted. The searcher that is returned
    knows how many are left.

    Tune starts anew with each driver. Its searcher hands out the trials of an earlier driver that have not ended, and
    they continue from their own checkpoints.
    """
    question, training = plan.question, plan.question.trial.training
    rows = [row for row in recorder.tables.leaderboard if row["kind"] != "control"]
    reused, seconds = question.settings.workers_per_trial == 1, question.settings.seconds
    each, most = workers(question.settings), concurrent
    nodes = FailingNodes(each, recorder.stop) if question.settings.address and concurrent else None
    room = nodes.room if nodes and not may_grow() else None  # on a cluster of fixed size, whose nodes may change
    if room:
        most = min(plan.most_at_once, question.settings.max_concurrent or plan.most_at_once)

    def at_once() -> int:
        return min(most, room()) if room else concurrent

    clock = Clock(seconds, at_once, training.max_steps, question.confirm_steps, began - plan.spent, reused=reused)
    search = SweepSearch(
        question.space,
        plan.objective,
        plan.direction,
        question.settings.seed,
        question.trials,
        training.max_steps,
        folder.path.resolve() / "optuna.journal",
        question.confirmation if plan.confirms else None,
        rows,
        recorder.tables.reports_of,
        training.seed,
        plan.further,
        plan.constraints,
        question.settings.sampler,
        warm,
        question.confirm_steps,
        clock,
        room,
    )
    if not search.left or not _has_time(plan):
        return search
    scheduler = SweepScheduler(
        plan.objective,
        plan.direction,
        training.max_steps,
        next(iter(plan.rungs), training.max_steps),
        question.settings.reduction_factor,
        rows,
        recorder.tables.reports_of,
        plan.further,
        lambda: clock.left < 0,
        recorder.out_of_time,
        training.keeps_best,
        nodes,
    )
    scratch, tracker = folder.scratch.resolve(), question.settings.log_to
    trackers = [make_tracker(tracker, folder.path)] if tracker else []
    patience = question.settings.stop_seconds if question.space.trains else 0.0
    last = LastCheckpoints(patience, lambda: bool(recorder.stopped) or deadline.over)
    tuner = tune.Tuner(
        _trainable(plan, folder),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=search.left,
            max_concurrent_trials=min(most, search.left),
            reuse_actors=reused,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[recorder, live, last, *trackers, *([nodes] if nodes else [])],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )
    logger.info("trials     starting processes")
    with tune_interrupts(), live_view(recorder.progress):
        tuner.fit()
    return search


def _trial_id(trial: Any) -> str:
    return str(trial.config[ID])


def _trainable(plan: Plan, folder: RunFolder) -> Any:
    """The function that Tune calls for each trial: validates its config and launches it."""
    question, metrics, stages_of = plan.question, plan.metrics, plan.stages_of
    objective = KeptBy(plan.objective, plan.direction == "max")
    run_bucket = folder.bucket.run if folder.bucket else None
    cluster = bool(question.settings.address)
    group, trials, scratch = workers(question.settings), folder.trials.resolve(), str(folder.scratch.resolve())

    def trial(config: dict[str, Any]) -> None:
        tested = config.get(KIND) == CONFIRMATION  # the search must not see the test photographs
        settings = question.trial_with(config[PARAMETERS], config[SEED], confirming=tested)
        stages = tuple(stage for stage in stages_of[settings.method] if tested or stage.split != "test")
        own, bucket = str(trials / config[ID]), trial_folder(run_bucket, config[ID]).uri if run_bucket else ""
        avoided = tuple(config.get(AVOIDED, ()))
        launch(Job(settings, stages, metrics, group, own, scratch, objective, bucket, cluster, avoided))

    return tune.with_resources(trial, trial_resources(group))
