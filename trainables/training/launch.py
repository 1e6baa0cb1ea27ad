"""Runs one trial under Ray: in the trial's own process, or in a group of workers.

In `trainables`, only this module and `trainables.data.ray_pipeline` import Ray. A trial with one worker runs through
`TorchTrainer`'s local mode inside the (reused) trial actor, which costs milliseconds. Two or more workers run as a
Train worker group with DistributedDataParallel, which costs the start of its processes. The loop is the same.
"""

from __future__ import annotations

import base64
import functools
import gc
import io
import logging
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray import train as ray_train
from ray import tune
from ray._private.state import state
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]  # generated
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution import context as context_module
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.integration.ray_train import TuneReportCallback

from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError
from trainables.data.prepared import open_stores
from trainables.data.stages.stage import Stage
from trainables.data.stores.roots import local_root
from trainables.settings import TrialSettings, override
from trainables.training.best_step import Objective
from trainables.training.bucket_log import shipped_output
from trainables.training.checkpoint_folders import CheckpointNotWritten
from trainables.training.checkpoint_place import CheckpointPlace
from trainables.training.loop import World, train
from trainables.training.preemption import MachineWatch, Notice
from trainables.training.reporting import MachineLeaving, Report, Reporter, TrialDiverged
from trainables.training.trial_log import kept_output
from trainables.training.validation import Validation

LOSSES, VALIDATION, TEST, REPEATED = "losses", "validation", "test", "repeated"
"""Keys of a result besides the metrics: rows of loss terms, the values of every image, those of every test image, and
whether a continued trial sends the report of its checkpoint again."""
BEST = "best"
"""Key of a result with `training.keep=best`: [best step so far, its validation metrics]. The values of every image are
those of this step."""
FAILED, PID = "failed", "process"
"""Keys of a result: the reason of a failure, the trial's process id."""
CHECKPOINT, DAMAGED, NOT_WRITTEN = "checkpoint", "damaged", "not_written"
"""Keys of a result: name of the checkpoint in the trial's folder; damaged checkpoints that a continued trial skipped;
the reason why no checkpoint can be written, which ends the sweep: no later one could be written either."""

NODES, _NODE = "nodes", "node"
"""Keys of a result of a worker group on a cluster: ids of its workers' nodes, by rank; id of one worker's node."""
FAILED_AT = "failed_at"
"""Attribute of an error that a worker of a group raised: (id of its node, time in seconds)."""

NODE_LABEL, HEAD = "ray.io/node-id", "node:__internal_head__"
"""Ray's label with a node's id; its resource that only the head has."""


@dataclass(frozen=True)
class Workers:
    """The workers of one trial, and the resources of each."""

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def each(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Job:
    """The input of a trial's processes.

    Attributes:
        stages: the finished stores that the trial reads; it does not read the source of the photographs.
        metrics: names of the metrics that every validation reports, decided once for the sweep.
        folder: the trial's folder in the results, for its checkpoints. Tune's own trial folder is deleted with its Ray.
        scratch: folder for the state of Train's worker groups, which is never read again; shared by all nodes.
        objective: decides which step is the best one, with `training.keep=best`.
        bucket: URI of the trial's folder in a bucket, for results that are in one. Checkpoints are then in it, and
            `folder` and `scratch` are on the head alone.
        on_cluster: whether machines may be taken away from the sweep.
        avoided: ids of nodes on which the workers of a group must not run.
    """

    settings: TrialSettings
    stages: tuple[Stage, ...]
    metrics: tuple[str, ...]
    workers: Workers
    folder: str
    scratch: str
    objective: Objective | None = None
    bucket: str = ""
    on_cluster: bool = False
    avoided: tuple[str, ...] = ()

    @property
    def own_folder(self) -> Path:
        """The trial's folder on this node: in shared results, or with a bucket in the node's cache, for checkpoints on
        their way."""
        return local_root(self.bucket) if self.bucket else Path(self.folder)


class ResultsNotShared(RuntimeError):
    """A node does not see the run's folder, or cannot read its bucket.

    Its trials could neither continue nor keep checkpoints.
    """


def launch(job: Job) -> None:
    """Trains one trial to its end and reports to Tune. Call it inside a Tune trial.

    A trial that would fail again reports the reason and returns, because after an exception Tune would try it again.
    """
    try:
        if job.workers.count == 1:
            _in_this_process(job)
        else:
            _in_worker_group(job)
    except Exception as error:
        if isinstance(error, MachineLeaving):
            raise RayActorError(error_msg=str(error), preempted=True) from None  # Tune does not count it as a failure
        if (end := last_report(error, job.settings, elsewhere=job.on_cluster)) is None:
            raise
        tune.report({**end, PID: os.getpid()})
    finally:
        free_memory()


def last_report(error: Exception, settings: TrialSettings, elsewhere: bool = False) -> dict[str, str] | None:
    """The last report of a trial that another try would not help; None if it may help.

    Args:
        elsewhere: whether the next try is on another node.
    """
    causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
    for cause in causes:
        if isinstance(cause, ResultsNotShared) and not elsewhere:
            return {NOT_WRITTEN: str(cause)}
        if isinstance(cause, TrialDiverged):
            return {FAILED: str(cause)}
        if isinstance(cause, torch.OutOfMemoryError):
            return {FAILED: out_of_memory(settings)}
    return None


def out_of_memory(settings: TrialSettings) -> str:
    """What a trial says whose GPU had too little memory: the settings that would help."""
    training = settings.training
    ways = [f"training.accumulate={2 * training.accumulate} or more"]
    if not training.gradient_checkpointing:
        ways.append("training.gradient_checkpointing=true")
    return f"out of GPU memory with training.batch_size={training.batch_size}: try {', '.join(ways)} or a smaller batch"


def free_memory() -> None:
    """Frees memory that a trial leaves in a process which will run the next trial."""
    torch.clear_autocast_cache()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_this_process(job: Job) -> None:
    def train_function() -> None:
        device = torch.device("cuda" if job.workers.gpus else "cpu")
        watch = machine_watch() if job.on_cluster else None
        _train(job, World(device=device), tune.report, watch.leaving if watch else lambda: False)

    with tempfile.TemporaryDirectory() as own:
        TorchTrainer(
            train_function,
            scaling_config=ray_train.ScalingConfig(num_workers=0),
            # The default is under HOME. With a bucket, `scratch` is on the head alone.
            run_config=ray_train.RunConfig(storage_path=own if job.bucket else job.scratch),
        ).fit()


def _in_worker_group(job: Job) -> None:
    def train_function() -> None:
        # Train would print every report, with its pictures as text, and the trial's log would have them.
        context_module.logger.setLevel(logging.WARNING)
        context = ray_train.get_context()
        device = ray_train.torch.get_device() if job.workers.gpus else torch.device("cpu")
        world = World(context.get_world_rank(), context.get_world_size(), device)
        node = ray.get_runtime_context().get_node_id()
        if job.on_cluster:
            machine_watch()  # Train itself starts the group again elsewhere
        try:
            _train(job, world, lambda result: ray_train.report({**result, _NODE: node}))
        except TrialDiverged as error:  # in all workers: they see the same losses
            ray_train.report({FAILED: str(error), PID: os.getpid()})
        except Exception as error:
            setattr(error, FAILED_AT, (node, time.time()))  # Train keeps the error, not where it was raised
            raise

    where: dict[str, Any] = {"label_selector": {NODE_LABEL: _not_in(job.avoided)}} if job.avoided else {}
    TorchTrainer(
        train_function,
        scaling_config=ray_train.ScalingConfig(
            num_workers=job.workers.count,
            use_gpu=job.workers.gpus > 0,
            resources_per_worker=job.workers.each,
            **where,
        ),
        run_config=ray_train.RunConfig(
            # A new name: Train would continue from its own record of an earlier attempt, and fail if it is damaged.
            name=f"group-{uuid.uuid4().hex}",
            storage_path=job.scratch,
            callbacks=[_GroupReports()],  # type: ignore[list-item]  # annotated with the base of another class
            # Train itself starts a failed group never again: Tune does, and counts failures of both kinds of trials.
        ),
    ).fit()


class _GroupReports(TuneReportCallback):
    """Passes the first worker's report on to Tune, with the nodes of all workers."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        nodes = [one.get(_NODE, "") for one in metrics]
        super().after_report(run_context, [{**metrics[0], NODES: nodes}], checkpoint)


@functools.cache
def machine_watch() -> MachineWatch:
    """Watches this process's node from now on: asks its cloud for notices, and follows whether Ray drains it."""
    node = ray.get_runtime_context().get_node_id()

    def drain(notice: Notice) -> None:
        if any(HEAD in one["Resources"] for one in ray.nodes() if one["NodeID"] == node):
            return  # an idle node that is drained ends, and the whole cluster with its head
        gcs: Any = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]  # set by Ray
        gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, notice.reason, int(notice.deadline * 1000))

    return MachineWatch(drain, lambda: node in state.get_draining_nodes())


def _train(job: Job, world: World, send: Callable[..., None], leaving: Callable[[], bool] = lambda: False) -> None:
    run = Path(job.folder).parents[1]
    if not job.bucket and not run.is_dir():
        raise ResultsNotShared(f"--results: node {socket.gethostname()} does not see {run}; all nodes must share it")
    rank = world.rank
    with shipped_output(BucketFolder(job.bucket), rank) if job.bucket else kept_output(Path(job.folder), rank):
        torch.set_num_threads(job.workers.threads)
        # The driver has compared the contents; here only sizes and schemas are checked.
        prepared = open_stores(override(job.settings, {"data.verify": False}), job.stages)
        place = CheckpointPlace(job.own_folder, job.bucket)
        try:
            try:
                start, damaged = place.newest()
            except InputError as error:
                raise ResultsNotShared(f"--results: node {socket.gethostname()}: {error}") from None
            reporter = _reporter(place, world, send, start, damaged)
            train(job.settings, prepared, job.metrics, world, reporter, start, job.objective, leaving)
        finally:
            place.clear()


def payload(report: Report, checkpoint: str = "", damaged: Sequence[str] = ()) -> dict[str, Any]:
    """A report in the form that Tune and Train carry, with the values of `CHECKPOINT` and `DAMAGED`.

    They keep results as JSON, so the picture is text. Values are in a list, because Tune flattens dictionaries.
    """
    measured = report.best.validation if report.best else report.validation
    return {
        **report.metrics,
        **({BEST: [report.best.step, measured.means]} if report.best else {}),
        "step": report.step,
        LOSSES: [[step, dict(row)] for step, row in report.losses],
        VALIDATION: _packed(measured),
        TEST: _packed(report.test) if report.test else [],
        REPEATED: report.repeated,
        CHECKPOINT: checkpoint,
        DAMAGED: list(damaged),
        PID: os.getpid(),
    }


def kept_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the validation metrics of the step that its trial keeps so far: this one, or the best."""
    _, means = result.get(BEST, (0, {}))
    return {**result, **means}


def _packed(validation: Validation) -> list[Any]:
    picture = io.BytesIO()
    Image.fromarray(validation.grid).save(picture, "png")
    per_image = {name: values.tolist() for name, values in validation.per_image.items()}
    return [list(validation.images), per_image, base64.b64encode(picture.getvalue()).decode()]


def take_validation(result: dict[str, Any]) -> tuple[Validation, Validation | None]:
    """Removes the values of every validation image and every test image from a result, so that Tune does not keep them
    with the trial's state. There are test images in the last result of a trial of the confirmation only.
    """
    test = result.pop(TEST, None)
    return _unpacked(result.pop(VALIDATION)), _unpacked(test) if test else None


def _unpacked(packed: list[Any]) -> Validation:
    images, per_image, picture = packed
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
    return Validation({name: np.asarray(values) for name, values in per_image.items()}, images, grid)


def _reporter(
    place: CheckpointPlace, world: World, send: Callable[..., None], start: Path | None, damaged: list[str]
) -> Reporter:
    """All workers must report together; only the first one's metrics count, and only it writes checkpoints.

    Args:
        send: a result -> None, of Tune or of Train.
        start: the checkpoint from which the trial continues. Its report is sent again without a new checkpoint.
        damaged: see `newest_whole`; goes with the first report.
    """

    def report(row: Report, write: Callable[[Path], None]) -> None:
        nonlocal damaged
        if row.reached is not None:  # of the first worker only
            with suppress(CheckpointNotWritten):  # then the trial continues from the one before it
                place.keep(row.reached, write, between=True)
            return
        kept = start if row.repeated else None
        if kept is None and not row.start and world.rank == 0:
            try:
                kept = place.keep(row.step, write)
            except CheckpointNotWritten as error:
                send({NOT_WRITTEN: str(error), PID: os.getpid()})
                return
        name = kept.relative_to(place.folder).as_posix() if kept else ""
        send(payload(row, name, damaged))
        damaged = []

    return report


def trial_resources(workers: Workers, avoided: Collection[str] = ()) -> tune.PlacementGroupFactory:
    """The resources that Tune reserves for a trial: those of its one worker.

    Args:
        avoided: ids of nodes on which it must not run; of one worker only.

    Train places the workers of a group itself. Then Tune reserves a small part of the head node's own resource, so that
    a trial's driver never competes with workers for CPUs.
    """
    if workers.count == 1:
        where: dict[str, Any] = {"bundle_label_selector": [{NODE_LABEL: _not_in(avoided)}]} if avoided else {}
        return tune.PlacementGroupFactory([workers.each], **where)
    return tune.PlacementGroupFactory([{HEAD: 0.001}])


def _not_in(nodes: Collection[str]) -> str:
    return f"!in({','.join(sorted(nodes))})"
