"""One worker of a trial: opens the prepared data, trains, keeps checkpoints, and sends what was measured."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError
from trainables.common.temporary import full_temporary_named
from trainables.data.prepared import Prepared, open_stores
from trainables.settings import override
from trainables.training.bucket_log import shipped_output
from trainables.training.checkpoint_folders import CheckpointNotWritten
from trainables.training.checkpoint_place import CheckpointPlace
from trainables.training.job import Job
from trainables.training.loop import World, train
from trainables.training.reporting import NodeUnfit, Report, Reporter
from trainables.training.results import NOT_WRITTEN, PID, payload
from trainables.training.stop_request import StopRequest
from trainables.training.trial_log import kept_output


@full_temporary_named()
def train_job(
    job: Job,
    world: World,
    send: Callable[..., None],
    leaving: Callable[[], bool] = lambda: False,
    stop: StopRequest | None = None,
) -> None:
    """Trains a trial, from its newest checkpoint if it has one, to its end.

    Args:
        world: this worker's place among those of the trial.
        send: a result -> None, of Tune or of Train.
        leaving, stop: see `Trainer`.

    Raises:
        NodeUnfit: this node cannot read data or checkpoints from their bucket, or its own disk is full.
        CannotRun: its `TMPDIR` is full.
        TrialDiverged, MachineLeaving: as `train`.
    """
    rank = world.rank
    with shipped_output(BucketFolder(job.bucket), rank) if job.bucket else kept_output(Path(job.folder), rank):
        torch.set_num_threads(job.workers.threads)
        prepared = _prepared(job)
        place = CheckpointPlace(job.own_folder, job.bucket)
        try:
            try:
                start, damaged = place.newest()
            except InputError as error:
                raise NodeUnfit(f"--results: node {socket.gethostname()}: {error}") from None
            reporter = _reporter(place, world, send, start, damaged)
            train(job.settings, prepared, job.metrics, world, reporter, start, job.objective, leaving, stop)
        finally:
            place.clear()


def _prepared(job: Job) -> Prepared:
    """Opens the prepared data. The driver has compared the contents; here only sizes and schemas are checked."""
    try:
        return open_stores(override(job.settings, {"data.verify": False}), job.stages)
    except InputError as error:
        if any(stage.folder.remote for stage in job.stages):  # the copy failed: no access, or too small a disk
            raise NodeUnfit(f"--store: node {socket.gethostname()}: {error}") from None
        raise


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
            with suppress(CheckpointNotWritten, NodeUnfit):  # then the trial continues from the one before it
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
