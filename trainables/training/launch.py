"""Runs one trial under Ray: in the trial's own process, or in a group of workers.

In `trainables`, only this module and `trainables.data.ray_pipeline` import Ray. A trial with one worker runs through
`TorchTrainer`'s local mode inside the (reused) trial actor, which costs milliseconds. Two or more workers run as a
Train worker group with DistributedDataParallel, which costs the start of its processes. The loop is the same.
"""

from __future__ import annotations

import base64
import gc
import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ray import train as ray_train
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback

from trainables.data.prepared import open_stores
from trainables.data.stages.stage import Stage
from trainables.pretrained.finished_trial import STATE
from trainables.settings import TrialSettings, override
from trainables.training.loop import World, train
from trainables.training.reporting import Report, Reporter, TrialDiverged
from trainables.training.validation import Validation

LOSSES, VALIDATION, TEST, REPEATED = "losses", "validation", "test", "repeated"
"""Keys of a result besides the metrics: rows of loss terms, the values of every image, those of every test image, and
whether a continued trial sends the report of its checkpoint again."""
FAILED, PID = "failed", "process"
"""Keys of a result: the reason of a failure, the trial's process id."""
CHECKPOINT_PATH = CHECKPOINT_PATH_KEY
"""Key of the checkpoint's path in a worker group's result."""
_GROUP = "group"


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
        folder: the trial's folder in the results. Tune's own trial folder is deleted with its Ray.
    """

    settings: TrialSettings
    stages: tuple[Stage, ...]
    metrics: tuple[str, ...]
    workers: Workers
    folder: str


def launch(job: Job) -> None:
    """Trains one trial to its end and reports to Tune. Call it inside a Tune trial.

    A diverged trial reports the reason and returns: after an exception Tune would retry it, and it would diverge again.
    """
    try:
        if job.workers.count == 1:
            _in_this_process(job)
        else:
            _in_worker_group(job)
    finally:
        free_memory()


def free_memory() -> None:
    """Frees memory that a trial leaves in a process which will run the next trial."""
    torch.clear_autocast_cache()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def resumes_from(known: Path | None, trial_folder: Path) -> Path | None:
    """The checkpoint from which a restarted trial continues; None to start over.

    Args:
        known: Tune's newest checkpoint of the trial. If the driver was killed after a checkpoint was replaced and
            before Tune recorded it, that checkpoint no longer exists; then the newest existing one is used.
        trial_folder: of the trial. A worker group keeps its checkpoints below it, and Train continues from the newest;
            Tune knows none of them.
    """
    if known is not None and known.exists():
        return known
    there = (trial_folder if known else trial_folder / _GROUP).glob("checkpoint_*")
    return max((folder for folder in there if (folder / STATE).exists()), key=_made, default=None)


def _made(folder: Path) -> float:
    return (folder / STATE).stat().st_mtime


def _in_this_process(job: Job) -> None:
    checkpoint = tune.get_checkpoint()
    start = resumes_from(Path(checkpoint.path) if checkpoint else None, Path(job.folder))

    def train_function() -> None:
        device = torch.device("cuda" if job.workers.gpus else "cpu")
        _train(job, World(device=device), _reporter(tune.report, tune.Checkpoint), start)

    try:
        TorchTrainer(train_function, scaling_config=ray_train.ScalingConfig(num_workers=0)).fit()
    except TrialDiverged as error:
        tune.report({FAILED: str(error), PID: os.getpid()})


def _in_worker_group(job: Job) -> None:
    def train_function() -> None:
        context = ray_train.get_context()
        device = ray_train.torch.get_device() if job.workers.gpus else torch.device("cpu")
        world = World(context.get_world_rank(), context.get_world_size(), device)
        checkpoint = ray_train.get_checkpoint()
        report = _group_reporter(world)
        try:
            if checkpoint is None:
                _train(job, world, report, None)
            else:
                with checkpoint.as_directory() as folder:
                    _train(job, world, report, Path(folder))
        except TrialDiverged as error:
            ray_train.report({FAILED: str(error), PID: os.getpid()})

    TorchTrainer(
        train_function,
        scaling_config=ray_train.ScalingConfig(
            num_workers=job.workers.count,
            use_gpu=job.workers.gpus > 0,
            resources_per_worker=job.workers.each,
        ),
        run_config=ray_train.RunConfig(
            # A fixed name, so that a restarted trial finds its own checkpoints.
            name=_GROUP,
            storage_path=job.folder,
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # annotated with the base of another class
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=1),
            failure_config=ray_train.FailureConfig(max_failures=2),
        ),
    ).fit()


def _train(job: Job, world: World, report: Reporter, checkpoint: Path | None) -> None:
    torch.set_num_threads(job.workers.threads)
    # The driver has compared the contents; here only sizes and schemas are checked.
    prepared = open_stores(override(job.settings, {"data.verify": False}), job.stages)
    train(job.settings, prepared, job.metrics, world, report, checkpoint)


def payload(report: Report) -> dict[str, Any]:
    """A report in the form that Tune and Train carry.

    They keep results as JSON, so the picture is text. Values are in a list, because Tune flattens dictionaries.
    """
    return {
        **report.metrics,
        "step": report.step,
        LOSSES: [[step, dict(row)] for step, row in report.losses],
        VALIDATION: _packed(report.validation),
        TEST: _packed(report.test) if report.test else [],
        REPEATED: report.repeated,
        PID: os.getpid(),
    }


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


def _reporter(send: Callable[..., None], checkpoint: Any) -> Reporter:
    def report(row: Report, write: Callable[[Path], None]) -> None:
        if row.start or row.repeated:  # the checkpoint of a repeated report is kept already
            send(payload(row))
            return
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            write(Path(folder))
            send(payload(row), checkpoint=checkpoint.from_directory(folder))

    return report


def _group_reporter(world: World) -> Reporter:
    """All workers must report together; only the first one's metrics count, and only it writes the checkpoint."""
    writing = _reporter(ray_train.report, ray_train.Checkpoint)

    def report(row: Report, write: Callable[[Path], None]) -> None:
        if world.rank == 0:
            writing(row, write)
        else:
            ray_train.report(payload(row))

    return report


def trial_resources(workers: Workers) -> tune.PlacementGroupFactory:
    """The resources that Tune reserves for a trial: those of its one worker.

    Train places the workers of a group itself. Then Tune reserves a small part of the head node's own resource, so that
    a trial's driver never competes with workers for CPUs.
    """
    if workers.count == 1:
        return tune.PlacementGroupFactory([workers.each])
    return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
