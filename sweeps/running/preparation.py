"""The prepared data of a sweep: estimates the time, and makes the stores on all resources of the sweep."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.planning.plan import Plan
from sweeps.recording.progress import logger
from sweeps.running.ray_cluster import workers
from trainables.common.devices import device_for, gpu_count
from trainables.common.machine import usable_cpus
from trainables.data.estimate import seconds_of
from trainables.data.preparation_progress import PreparationProgress
from trainables.data.prepare import make_stores, pairs_of, read_photographs
from trainables.data.ray_pipeline import STORES, check_shared, on_ray
from trainables.data.shards import Runner, run_here
from trainables.data.stages.stage import Stage
from trainables.data.stores.roots import local_root
from trainables.data.stores.store import Store

_FEW_ROWS = 200  # of all stages: only then is the time estimated, which takes seconds
_START_SECONDS = 15.0  # of one core, until a process on Ray has imported what it needs


def estimated_seconds(sweep: Plan) -> float:
    """Estimated seconds to make the missing stores on this machine: on its GPUs if trials use GPUs, else its cores."""
    seconds, counted = 0.0, set[str]()
    gpus = gpu_count() if sweep.question.settings.gpus_per_worker else 0
    for trial in sweep.question.every_method:
        stages = sweep.stages_of[trial.method]
        missing = [stage for stage in stages if not stage.exists and stage.folder.name not in counted]
        counted |= {stage.folder.name for stage in missing}
        pairs = pairs_of(trial, read_photographs(trial, missing, local_root(sweep.store), sweep.source))
        seconds += seconds_of(trial, missing, pairs, device_for(gpus))
    return seconds / (gpus or usable_cpus())


def prepare_stores(sweep: Plan, concurrent: int) -> list[Store]:
    """Makes the missing stores of all methods. Returns the local ones, open: an open store is not pruned.

    Args:
        concurrent: trials that the connected Ray runs at once; preparation uses as many GPUs as they would.

    Raises:
        InputError: see `prepare`; or the nodes of a cluster do not share the folder of the stores.
    """
    settings = sweep.question.settings
    if settings.address:
        check_shared(sweep.store, "--store", STORES)
    missing = [stage for stage in sweep.stages if not stage.exists]
    logger.info("store      %s", "reused" if not missing else f"{len(missing)} of {len(sweep.stages)} parts to make")
    run = _runner(sweep, missing, concurrent) if missing else run_here
    for trial in sweep.question.every_method:
        progress = PreparationProgress(lambda line: logger.info("prepare    %s", line))
        make_stores(trial, sweep.stages_of[trial.method], progress=progress, run=run, source=sweep.source)
    return [Store(stage.folder.local) for stage in sweep.stages if not stage.folder.remote]


def _runner(sweep: Plan, missing: Sequence[Stage], concurrent: int) -> Runner:
    """On Ray; but here, if to start processes on this machine would take longer than the work."""
    settings = sweep.question.settings
    each = workers(settings)
    if each.gpus:
        return on_ray(concurrent * each.count, each.gpus)
    few = not settings.address and sum(stage.rows for stage in missing) <= _FEW_ROWS
    return run_here if few and estimated_seconds(sweep) * usable_cpus() < _START_SECONDS else on_ray()
