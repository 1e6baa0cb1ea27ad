"""Preparation on all cores, or all machines of a cluster, as a Ray Data pipeline.

Beside `trainables.launch` the only module here that knows Ray. What flows through the pipeline is the numbers of
shards; their rows go from stage to stage through the stores, where the next stage maps them, so that neither the
driver nor Ray's object store ever holds pixels and memory does not grow with the data set.
"""

from __future__ import annotations

import logging
import os
import pickle
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import ray.data
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.data.roots import is_uri
from trainables.data.shards import Made, Runner, ShardMaker, Task, run_here
from trainables.errors import InputError

_MOST_BLOCKS = 1000  # of a dataset of shard numbers; more cost Ray more than they spread the work better
_OBJECT_STORE_BYTES = 100 * 2**20
_FEW = 4  # shards that are made sooner than processes start

Batch = dict[str, np.ndarray]


_jobs: dict[ray.ObjectRef, tuple[ShardMaker, Sequence[Task]]] = {}
"""This process's, the last one alone: with the networks that it has loaded."""


def _job(reference: ray.ObjectRef, device: str) -> tuple[ShardMaker, Sequence[Task]]:
    if reference not in _jobs:
        _jobs.clear()
        maker, tasks = ray.get(reference)
        maker.device = torch.device(device)
        _jobs[reference] = maker, tasks
    return _jobs[reference]


def _work(batch: Batch, held: list[ray.ObjectRef], stages: frozenset[str], device: str) -> Batch:
    """Does of the tasks in `batch` the part `stages`, and adds to what an earlier part made."""
    maker, tasks = _job(held[0], device)
    all_made = []
    for place, number in enumerate(batch["number"]):
        task = tasks[number]
        before: Made = pickle.loads(batch["made"][place]) if "made" in batch else Made(task)
        if not before.error:
            made = maker(replace(task, stages=tuple(name for name in task.stages if name in stages)))
            before = Made(task, {**before.shards, **made.shards}, {**before.seconds, **made.seconds}, made.error)
        all_made.append(pickle.dumps(before))
    return {"number": batch["number"], "made": np.array(all_made, dtype=object)}


class _Worker:
    """`_work` as a process that stays: one with a GPU would otherwise end after every task."""

    def __call__(self, batch: Batch, held: list[ray.ObjectRef], stages: frozenset[str], device: str) -> Batch:
        return _work(batch, held, stages, device)


def on_ray(processes: int, cpus: float = 1.0, gpus: float = 0.0) -> Runner:
    """Who makes shards on the Ray that is connected.

    Without GPUs one process does all stages of a shard, which keeps every core busy whatever the stages cost. With
    them, processes without one crop and degrade, and hand over to processes with one each, which encode and teach.

    Args:
        processes: how many at once, at most. cpus, gpus: what one with networks takes.
    """

    def run(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        if not gpus and len(tasks) <= _FEW:
            yield from run_here(maker, tasks)
            return
        stages = frozenset(name for task in tasks for name in task.stages)
        quiet = ray.data.DataContext.get_current()
        quiet.enable_progress_bars = False
        quiet.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        held = [ray.put((maker, tasks))]
        numbers = ray.data.from_items(
            [{"number": number} for number in range(len(tasks))], override_num_blocks=min(len(tasks), _MOST_BLOCKS)
        )
        if gpus and stages > {"pairs"}:
            croppers = max(1, int(ray.cluster_resources().get("CPU", 1) - processes * cpus))
            made = _through(numbers, held, (frozenset({"pairs"}), "cpu"), {"CPU": 1.0}, croppers)
            made = _through(made, held, (stages - {"pairs"}, "cuda"), {"CPU": cpus, "GPU": gpus}, processes)
        else:
            made = _through(numbers, held, (stages, "cpu"), {"CPU": cpus}, processes)
        for row in made.iter_rows():
            yield pickle.loads(row["made"])

    return run


def _through(
    dataset: ray.data.Dataset,
    held: list[ray.ObjectRef],
    work: tuple[frozenset[str], str],
    each: dict[str, float],
    processes: int,
) -> ray.data.Dataset:
    """`dataset` through so many processes, which take `each` of the cluster."""
    # Tasks find the networks of the one before in their process. The reference is in a list, or Ray would unpack it.
    return dataset.map_batches(
        _Worker if "GPU" in each else _work,  # type: ignore[arg-type]  # annotated for functions of the batch alone
        fn_args=(held, *work),
        batch_size=1,
        num_cpus=each["CPU"],
        num_gpus=each.get("GPU"),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=processes)
        if "GPU" in each
        else ray.data.TaskPoolStrategy(size=processes),
    )


@contextmanager
def connected_for_preparation(address: str = "", cpus: int = 0, gpus: int = 0) -> Iterator[int]:
    """A Ray to prepare on, let go of in the end: a running cluster, or one of our own. Yields its CPUs.

    Args:
        cpus, gpus: how many processes at once, and how many of them with a GPU; 0 CPUs are all cores.

    Raises:
        InputError: no cluster at the address.
    """
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=cpus or len(os.sched_getaffinity(0)),
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        raise InputError(f"--address {address}: no Ray cluster ({str(error).splitlines()[0]})") from None
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def check_shared(root: str) -> None:
    """Refuses a local root that not every node of the cluster sees.

    Raises:
        InputError: naming it, and what would do.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if is_uri(root) or len(nodes) == 1:
        return
    Path(root).mkdir(parents=True, exist_ok=True)
    token = Path(root) / f".seen-{uuid.uuid4().hex}"
    token.touch()
    try:
        see = ray.remote(num_cpus=0)(lambda: token.exists())
        here = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        seen = sum(ray.get([see.options(scheduling_strategy=where).remote() for where in here]))
    finally:
        token.unlink(missing_ok=True)
    if seen < len(nodes):
        raise InputError(
            f"--store {root}: {len(nodes) - seen} of the cluster's {len(nodes)} nodes do not see this folder; give one "
            "that all share, or a bucket such as s3://NAME/stores"
        )
