"""Preparation on all cores, or all machines of a cluster, as a Ray Data pipeline.

The pipeline passes only the numbers of shards. The rows go from stage to stage through the stores, where the next stage
maps them into memory. So neither the driver nor Ray's object store holds pixels, and memory does not grow with the data
set.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.common.cluster import check_address, join, shipped_code
from trainables.common.devices import device_for
from trainables.common.errors import InputError
from trainables.common.interrupts import interrupts_kept
from trainables.common.local_ray import local_ray, messages_to
from trainables.common.machine import usable_cpus
from trainables.common.paths import is_uri
from trainables.data.shards import Made, Runner, ShardMaker, Task, run_here

# Tasks per CPU, each of some shards. More tasks wait for Ray more often; fewer tasks end less evenly.
_TASKS_A_CPU, _MOST_TASKS = 48, 1000
STORES = "one that all share, or a bucket such as s3://NAME/stores"
"""What `--store` accepts on a cluster."""
_RESTARTS = 3  # of a background process
_NAMED = 5  # nodes in a message
_FEW = 4  # this many shards are finished before other processes would have started

Columns = dict[str, np.ndarray]


class ShardWork(NamedTuple):
    """What a process needs.

    Attributes:
        sign: a file that the driver keeps in a local root of the stores while it prepares; None for a bucket.
    """

    maker: ShardMaker
    tasks: Sequence[Task]
    sign: Path | None


_jobs: dict[ray.ObjectRef, ShardWork] = {}
"""The last work of this process, with the networks that its maker has loaded."""


def _job(reference: ray.ObjectRef, device: str) -> ShardWork:
    if reference not in _jobs:
        _jobs.clear()
        work: ShardWork = ray.get(reference)
        work.maker.device = torch.device(device)
        _jobs[reference] = work
    return _jobs[reference]


def do_task(work: ShardWork, before: Made, stages: frozenset[str]) -> Made:
    """Does the stages `stages` of a task, and adds the result to that of earlier stages.

    A node that joins later may not see the root of the stores. Its shards would be nowhere.
    """
    if before.error:
        return before
    if work.sign and not work.sign.exists():
        node, root = socket.gethostname(), work.sign.parent
        return replace(before, error=f"--store {root}: node {node} does not see it; give {STORES}")
    own = replace(before.task, stages=tuple(name for name in before.task.stages if name in stages))
    made = work.maker(own, before.made_again)
    return Made(before.task, {**before.shards, **made.shards}, (*before.kept, *made.kept), made.error)


def _work(batch: Columns, held: list[ray.ObjectRef], stages: frozenset[str], device: str) -> Columns:
    """`do_task` for the tasks in `batch`."""
    work = _job(held[0], device)
    all_made = []
    for place, number in enumerate(batch["number"]):
        before: Made = pickle.loads(batch["made"][place]) if "made" in batch else Made(work.tasks[number])
        all_made.append(pickle.dumps(do_task(work, before, stages)))
    return {"number": batch["number"], "made": np.array(all_made, dtype=object)}


class _Worker:
    """`_work` in a process that stays alive; otherwise a process with a GPU would end after every task."""

    def __call__(self, batch: Columns, held: list[ray.ObjectRef], stages: frozenset[str], device: str) -> Columns:
        return _work(batch, held, stages, device)


def on_ray(gpu_processes: int = 0, gpus: float = 1.0, device: str = "") -> Runner:
    """A runner that makes shards on the connected Ray.

    Without GPUs there is one process per CPU, which does all stages of a shard, so every core is busy whatever the
    stages cost. With GPUs, these processes crop and degrade, and other processes, which take no CPU, run the networks
    on a GPU, so that neither kind waits for the other's resources.

    Args:
        gpu_processes: largest number of processes with networks on a GPU; 0 for networks on CPUs.
        gpus: number of GPUs for each.
        device: where networks run in these processes; empty for that of a process with so many GPUs.
    """

    def run(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        if not gpu_processes and sum(not task.left for task in tasks) <= _FEW:
            yield from run_here(maker, tasks)
            return
        with _signed(maker, tasks) as work:
            yield from _made_on_ray(work, gpu_processes, gpus, device)

    return run


@contextmanager
def _signed(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[ShardWork]:
    """The work for the processes of all nodes."""
    with nullcontext() if is_uri(maker.root) else _sign(Path(maker.root)) as sign:
        yield ShardWork(maker, tasks, sign)


def _made_on_ray(work: ShardWork, gpu_processes: int, gpus: float, device: str) -> Iterator[Made]:
    stages = frozenset(name for task in work.tasks for name in task.stages)
    quiet = ray.data.DataContext.get_current()
    quiet.enable_progress_bars = False
    quiet.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    held = [ray.put(work)]  # in a list, because Ray would unpack a bare reference for every task
    most = min(_MOST_TASKS, _TASKS_A_CPU * max(1, int(ray.cluster_resources().get("CPU", 1))))
    numbers = ray.data.from_items(
        [{"number": number} for number in range(len(work.tasks))], override_num_blocks=min(len(work.tasks), most)
    )
    on_gpus = stages - {"pairs"} if gpu_processes else frozenset[str]()
    made: ray.data.Dataset = numbers
    # A task reuses the networks that the previous task loaded in its process.
    if stages - on_gpus:
        made = made.map_batches(
            _work,  # type: ignore[arg-type]  # annotated for functions of the batch alone
            fn_args=(held, stages - on_gpus, "cpu"),
            batch_size=1,
            num_cpus=1,
        )
    if on_gpus:
        made = made.map_batches(
            _Worker,  # type: ignore[arg-type]
            fn_args=(held, on_gpus, device or device_for(gpus)),
            batch_size=1,
            num_cpus=0,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gpu_processes),
        )
    with interrupts_kept() as interrupted:
        for row in made.iter_rows():
            if interrupted:
                raise KeyboardInterrupt
            yield pickle.loads(row["made"])


class _BackgroundWorker:
    """Makes shards in a process of its own, of the lowest priority."""

    def __init__(self) -> None:
        # Trials come first: Ray gives their processes a niceness of 15. The scheduler's class for idle processes would
        # be too low: on a busy machine, a trial that waits for a variant would then wait for all other processes.
        os.nice(19)

    def make(self, held: list[ray.ObjectRef], number: int) -> Made:
        work = _job(held[0], "cpu")
        task = work.tasks[number]
        return do_task(work, Made(task), frozenset(task.stages))


class BackgroundWorkers:
    """A `Runner` beside trials on the connected Ray: processes of the lowest priority.

    They ask Ray for no CPU, because trials may have all of them, and would then wait for these processes. A process
    that dies is started again, up to three times, and makes the shard again that it was making.

    Args:
        processes: how many.

    When called, raises RayActorError: a process died too often, or `close` was called meanwhile.
    """

    def __init__(self, processes: int) -> None:
        worker = ray.remote(
            num_cpus=0, max_restarts=_RESTARTS, max_task_retries=_RESTARTS, scheduling_strategy="SPREAD"
        )(_BackgroundWorker)
        self._workers: list[Any] = [worker.remote() for _ in range(processes)]

    def __call__(self, maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        with _signed(maker, tasks) as work:
            held = [ray.put(work)]
            turns = zip(itertools.cycle(self._workers), range(len(tasks)), strict=False)
            waiting = [worker.make.remote(held, number) for worker, number in turns]
            while waiting:
                done, waiting = ray.wait(waiting)
                yield from ray.get(done)

    def close(self) -> None:
        """Ends the processes. Finished shards are kept."""
        for worker in self._workers:
            ray.kill(worker)


@contextmanager
def connected_for_preparation(address: str = "", cpus: int = 0, gpus: int = 0, store: str = "") -> Iterator[None]:
    """Connects to a running cluster, or starts a local Ray; disconnects at the end.

    Args:
        cpus, gpus: number of processes, and how many of them have a GPU; 0 CPUs means all that this process may use,
            see `usable_cpus`.
        store: root of the stores, which is not copied to the nodes with the code.

    Raises:
        InputError: see `join` and `local_ray`. CannotRun: a local Ray does not start.
    """
    if address:
        check_address(address)
        join(address, shipped_code(store))
        try:
            yield
        finally:
            ray.shutdown()
    else:
        with messages_to(lambda line: None), local_ray(cpus or usable_cpus(), gpus, _lost):
            yield


def _lost(reason: str) -> None:
    print(f"stopped: {reason}; finished shards are kept; run the same command to resume", file=sys.stderr)


@contextmanager
def _sign(folder: Path) -> Iterator[Path]:
    """A file in a folder that other nodes look for; the folder is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    sign = folder / f".seen-{uuid.uuid4().hex}"
    sign.touch()
    try:
        yield sign
    finally:
        sign.unlink(missing_ok=True)


def _sees(answer: Any) -> bool:
    """Whether a node sees the folder; true if it has left the cluster and cannot be asked. Trials look again."""
    try:
        return bool(ray.get(answer))
    except RayTaskError as error:
        if isinstance(error.cause, OSError):  # it may not look there
            return False
        raise
    except RayError:
        return True


def check_shared(folder: str, flag: str, accepted: str) -> None:
    """Refuses a local folder that some node of the cluster does not see.

    Args:
        flag: which flag gives the folder. accepted: what would be accepted, that all nodes share.

    Raises:
        InputError: naming flag, folder and nodes, and what would be accepted.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if is_uri(folder) or len(nodes) == 1:
        return
    with _sign(Path(folder)) as sign:
        see = ray.remote(num_cpus=0)(lambda: sign.exists())
        here = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        answers = [see.options(scheduling_strategy=where).remote() for where in here]
        seen = [_sees(answer) for answer in answers]
    if blind := [address for address, sees in zip(nodes.values(), seen, strict=True) if not sees]:
        named = ", ".join(blind[:_NAMED]) + (" and others" if len(blind) > _NAMED else "")
        raise InputError(
            f"{flag} {folder}: {len(blind)} of the cluster's {len(nodes)} nodes do not see it: {named}; give {accepted}"
        )
