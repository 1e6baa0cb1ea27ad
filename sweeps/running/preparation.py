"""The prepared data of a sweep: estimates the time, and makes the stores.

All resources of the sweep make what the first trials need, before they start. Later variants of the training pairs are
made while trials train, by processes of the lowest priority.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.exceptions import RayActorError

from sweeps.planning.plan import Plan
from sweeps.recording.progress import logger
from sweeps.running.ray_cluster import workers
from trainables.common.devices import device_for, gpu_count
from trainables.common.errors import one_line
from trainables.common.machine import usable_cpus
from trainables.common.units import duration
from trainables.data.estimate import seconds_of
from trainables.data.preparation_progress import PreparationProgress
from trainables.data.prepare import make_stores, pairs_of, read_photographs
from trainables.data.ray_pipeline import STORES, BackgroundWorkers, check_shared, on_ray
from trainables.data.shards import Runner, run_here
from trainables.data.stages.stage import Stage
from trainables.data.stores.roots import local_root
from trainables.data.stores.store import Store

_FEW_ROWS = 200  # of all stages: only then is the time estimated, which takes seconds
_START_SECONDS = 15.0  # of one core, until a process on Ray has imported what it needs
_MOST_BESIDE = 8  # processes, beside trials
_END_SECONDS = 10.0  # for a thread to end after its processes
_DIED = "its process died several times without an error message; it was killed, or there was too little memory"


def estimated_seconds(sweep: Plan) -> float:
    """Estimated seconds to make what is missing before the trials on this machine: on its GPUs if trials use GPUs, else
    its cores.
    """
    seconds, counted = 0.0, set[str]()
    gpus = gpu_count() if sweep.question.settings.gpus_per_worker else 0
    for trial in sweep.question.every_method:
        stages = _before(sweep, trial.method)
        missing = [stage for stage in stages if not stage.exists and stage.folder.name not in counted]
        counted |= {stage.folder.name for stage in missing}
        pairs = pairs_of(trial, read_photographs(trial, missing, local_root(sweep.store), sweep.source))
        seconds += seconds_of(trial, missing, pairs, device_for(gpus))
    return seconds / (gpus or usable_cpus())


def prepare_stores(sweep: Plan, concurrent: int) -> list[Store]:
    """Makes the missing stores of all methods, but for those that are made beside the trials. Returns the local ones,
    open: an open store is not pruned.

    Args:
        concurrent: trials that the connected Ray runs at once; preparation uses as many GPUs as they would.

    Raises:
        InputError: see `prepare`; or the nodes of a cluster do not share the folder of the stores.
    """
    settings = sweep.question.settings
    if settings.address:
        check_shared(sweep.store, "--store", STORES)
    stages = {stage.folder: stage for trial in sweep.question.every_method for stage in _before(sweep, trial.method)}
    missing = [stage for stage in stages.values() if not stage.exists]
    logger.info("store      %s", "reused" if not missing else f"{len(missing)} of {len(stages)} parts to make")
    run = _runner(sweep, missing, concurrent) if missing else run_here
    for trial in sweep.question.every_method:
        progress = PreparationProgress(lambda line: logger.info("prepare    %s", line))
        make_stores(trial, _before(sweep, trial.method), progress=progress, run=run, source=sweep.source)
    return _held(stages.values())


def _runner(sweep: Plan, missing: Sequence[Stage], concurrent: int) -> Runner:
    """On Ray; but here, if to start processes on this machine would take longer than the work."""
    settings = sweep.question.settings
    each = workers(settings)
    if each.gpus:
        return on_ray(concurrent * each.count, each.gpus)
    few = not settings.address and sum(stage.rows for stage in missing) <= _FEW_ROWS
    return run_here if few and estimated_seconds(sweep) * usable_cpus() < _START_SECONDS else on_ray()


@contextmanager
def preparing_beside(sweep: Plan, concurrent: int, held: list[Store], stop: Callable[[str], None]) -> Iterator[None]:
    """Makes the stores of `Plan.beside` that are missing, one variant after another, while the body runs.

    They are finished in the order in which trials need them. What is unfinished at the end is left, with its shards.

    Args:
        concurrent: as in `prepare_stores`.
        held: the local ones are added to it, open.
        stop: ends the sweep; called from a thread, with the reason, if a variant cannot be made.
    """
    held.extend(_held(stage for stage in sweep.beside if stage.exists))
    beside = [stage for stage in sweep.beside if not stage.exists]
    if not beside:
        yield
        return
    each, ended = workers(sweep.question.settings), threading.Event()
    left = ray.cluster_resources().get("CPU", 1.0) - concurrent * each.count * each.cpus
    background = BackgroundWorkers(max(1, min(_MOST_BESIDE, int(left))))

    def make() -> None:
        for variant in sorted({stage.variant for stage in beside}):
            began = time.monotonic()
            try:
                for trial in sweep.question.every_method:
                    stages = [stage for stage in sweep.stages_of[trial.method] if stage.variant == variant]
                    make_stores(trial, stages, run=background, source=sweep.source)
                held.extend(_held(stage for stage in beside if stage.variant == variant))
            except Exception as error:
                if not ended.is_set():
                    reason = _DIED if isinstance(error, RayActorError) else one_line(error)
                    stop(f"variant {variant} of the training pairs cannot be prepared: {reason}")
                return
            took = duration(time.monotonic() - began)
            logger.info("prepare    variant %d of the training pairs, beside the trials, in %s", variant, took)

    thread = threading.Thread(target=make, name="preparing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        background.close()
        thread.join(_END_SECONDS)


def _before(sweep: Plan, method: str) -> list[Stage]:
    """The stages of a method that are made before the trials."""
    beside = {stage.folder for stage in sweep.beside}
    return [stage for stage in sweep.stages_of[method] if stage.folder not in beside]


def _held(stages: Iterable[Stage]) -> list[Store]:
    return [Store(stage.folder.local) for stage in stages if not stage.folder.remote]
