"""Runs one trial under Ray: in the trial's own process, or in a group of workers.

A trial with one worker runs through `TorchTrainer`'s local mode inside the (reused) trial actor, which costs
milliseconds. Two or more workers run as a Train worker group with DistributedDataParallel, which costs the start of its
processes. The loop is the same.

Networks and metrics are imported where a worker runs. The two further processes of a group, Tune's and Train's, train
nothing, and would spend six to eight CPU seconds each on these imports.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
import uuid
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train as ray_train
from ray import tune
from ray._private.state import state
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]  # generated
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution import context as context_module
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.integration.ray_train import TuneReportCallback

from trainables.common.cluster import gcs_client
from trainables.common.devices import device_for
from trainables.common.errors import CannotRun, one_line
from trainables.settings import TrialSettings
from trainables.training.job import Job, Workers, check_folders
from trainables.training.memory import free_memory
from trainables.training.preemption import MachineWatch, Notice
from trainables.training.reporting import MachineLeaving, TrialDiverged
from trainables.training.results import DIVERGED, FAILED, NOT_WRITTEN, PID
from trainables.training.stop_messages import request_to

NODES, _NODE = "nodes", "node"
"""Keys of a result of a worker group on a cluster: ids of its workers' nodes, by rank; id of one worker's node."""
FAILED_AT = "failed_at"
"""Attribute of an error that a worker of a group raised: (id of its node, time in seconds)."""


class OnUnfitNode(RayActorError):
    """A try of a trial ended because a node can train none: see `NodeUnfit`. Tune does not count it as a failure.

    Args:
        node: its id.
        said: what is wrong with it.
    """

    def __init__(self, node: str, said: str) -> None:
        super().__init__(error_msg=said, preempted=True)
        self.node = node


NODE_LABEL, HEAD = "ray.io/node-id", "node:__internal_head__"
"""Ray's label with a node's id; its resource that only the head has."""


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
        if left := next((cause for cause in _causes(error) if isinstance(cause, MachineLeaving)), None):
            raise RayActorError(error_msg=str(left), preempted=True) from None  # Tune does not count it as a failure
        if (unfit := unfit_cause(error, own_disk=bool(job.bucket))) and job.on_cluster:
            node, _ = getattr(unfit, FAILED_AT, (ray.get_runtime_context().get_node_id(), 0.0))
            raise OnUnfitNode(node, one_line(unfit)) from None
        end = {NOT_WRITTEN: one_line(unfit)} if unfit else last_report(error, job.settings)
        if end is None:
            raise
        tune.report({**end, PID: os.getpid()})
    finally:
        free_memory()


def unfit_cause(error: Exception, own_disk: bool = False) -> Exception | None:
    """The error that says that its node can train no trial; None if there is none. On one machine it ends the sweep.

    Args:
        own_disk: whether trials write to no disk but that of their node, so that a full one is the node's fault.
    """
    for cause in _causes(error):
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(cause, CannotRun) or (full and own_disk):
            return cause
    return None


def last_report(error: Exception, settings: TrialSettings) -> dict[str, Any] | None:
    """The last report of a trial that another try now would not help; None if it may help. A later one, on a larger or
    emptier GPU, may help a trial that ran out of memory, but none that diverged.
    """
    for cause in _causes(error):
        if isinstance(cause, TrialDiverged):
            return {FAILED: str(cause), DIVERGED: True}
        if isinstance(cause, torch.OutOfMemoryError):
            return {FAILED: out_of_memory(settings)}
    return None


def _causes(error: Exception) -> list[Exception]:
    """The errors of the workers of a group, or the error itself."""
    return list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]


def out_of_memory(settings: TrialSettings) -> str:
    """What a trial says whose GPU had too little memory: the settings that would help."""
    training = settings.training
    ways = [f"training.accumulate={2 * training.accumulate} or more"]
    if not training.gradient_checkpointing:
        ways.append("training.gradient_checkpointing=true")
    return f"out of GPU memory with training.batch_size={training.batch_size}: try {', '.join(ways)} or a smaller batch"


def _in_this_process(job: Job) -> None:
    check_folders(job)

    def train_function() -> None:
        from trainables.training.loop import World
        from trainables.training.trial_process import train_job

        device = torch.device(device_for(job.workers.gpus))
        leaving = machine_watch().leaving if job.on_cluster else lambda: False
        with request_to(Path(job.folder).name) as stop:
            train_job(job, World(device=device), tune.report, leaving, stop)

    TorchTrainer(
        train_function,
        scaling_config=ray_train.ScalingConfig(num_workers=0),
        # The default is under HOME. With a bucket, `scratch` is on the head alone.
        run_config=ray_train.RunConfig(storage_path=str(job.own_folder) if job.bucket else job.scratch),
    ).fit()


def _in_worker_group(job: Job) -> None:
    def train_function() -> None:
        from trainables.training.loop import World
        from trainables.training.trial_process import train_job

        # Train would print every report, with its pictures as text, and the trial's log would have them.
        context_module.logger.setLevel(logging.WARNING)
        context = ray_train.get_context()
        device = torch.device(device_for(job.workers.gpus))
        if device.type == "cuda":
            device = ray_train.torch.get_device()  # with the number of this worker's
        world = World(context.get_world_rank(), context.get_world_size(), device)
        node = ray.get_runtime_context().get_node_id()
        if job.on_cluster:
            machine_watch()
        # The first worker writes the checkpoints. When it leaves, Train ends the others.
        leaving = _group_leaves if job.on_cluster and world.rank == 0 else lambda: False
        try:
            check_folders(job)
            # The first worker answers for the group.
            with nullcontext() if world.rank else request_to(Path(job.folder).name) as stop:
                train_job(job, world, lambda result: ray_train.report({**result, _NODE: node}), leaving, stop)
        except TrialDiverged as error:  # in all workers: they see the same losses
            ray_train.report({FAILED: str(error), DIVERGED: True, PID: os.getpid()})
        except Exception as error:
            setattr(error, FAILED_AT, (node, time.time()))  # Train keeps the error, not where it was raised
            raise

    where: dict[str, Any] = {"label_selector": {NODE_LABEL: _not_in(job.avoided)}} if job.avoided else {}
    TorchTrainer(
        train_function,
        torch_config=TorchConfig(backend="nccl" if device_for(job.workers.gpus) == "cuda" else "gloo"),
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
            # Only a group that is on a drained machine when that ends is started again by Train, inside this `fit`.
        ),
    ).fit()


def _group_leaves() -> bool:
    """Whether a node of this worker's group is drained, as Train has told each worker. Its own question,
    `get_preemption_info`, makes all workers wait for each other.
    """
    return context_module.get_train_context().preemption_context.preemption_info is not None


class _GroupReports(TuneReportCallback):
    """Passes the first worker's report on to Tune, with the nodes of all workers."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        nodes = [one.get(_NODE, "") for one in metrics]
        super().after_report(run_context, [{**metrics[0], NODES: nodes}], checkpoint)


@functools.cache
def machine_watch() -> MachineWatch:
    """Watches this process's node from now on: asks its cloud for notices, and follows whether Ray drains it."""
    node = ray.get_runtime_context().get_node_id()
    return MachineWatch(functools.partial(drain, node), lambda: node in state.get_draining_nodes())


def drain(node: str, notice: Notice) -> None:
    """Makes a node, by its id, take no more work until it is taken away. The head stays as it is: an idle node that is
    drained ends, and with the head the whole cluster.
    """
    if not any(HEAD in one["Resources"] for one in ray.nodes() if one["NodeID"] == node):
        gcs_client().drain_node(node, DRAIN_NODE_REASON_PREEMPTION, notice.reason, int(notice.deadline * 1000))


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
