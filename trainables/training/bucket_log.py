"""The log of a trial whose results are in a bucket: written on the trial's node, and copied to the bucket as it grows.

It continues the log that is there: the trial may have run on another node before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from trainables.common.buckets import BucketFolder
from trainables.common.errors import CannotRun, InputError
from trainables.common.temporary import temporary_folder
from trainables.training.trial_log import LIMIT, kept_output, log_name

FIRST, EVERY = 0.5, 5.0
"""Seconds until the first copy, and between two. A process that is killed loses the lines after its last one."""


@contextmanager
def shipped_output(trial: BucketFolder, rank: int = 0) -> Iterator[None]:
    """As `kept_output`, with the file in a trial's folder in a bucket.

    A bucket that does not answer, or a full `TMPDIR`, costs lines of the log only. If the log that is there cannot be
    read, it stays as it is, and this process's is not kept.

    Args:
        trial: the trial's folder.
        rank: of this process among the workers of the trial.
    """
    name, bucket = log_name(rank), replace(trial, patient=False)
    with ExitStack() as stack:
        kept = False
        try:
            folder = stack.enter_context(temporary_folder())
            path = folder / name
            there = bucket.objects().get(name)
            if there and there.bytes <= LIMIT:  # else it is none of ours
                path.write_bytes(bucket.read(name) or b"")
            kept = True
        except (CannotRun, InputError, OSError):
            pass  # not inside: errors of the trial would come from this one
        if not kept:
            yield
            return
        shipping = _Shipping(path, bucket)
        try:
            with kept_output(folder, rank):
                yield
        finally:
            shipping.close()


class _Shipping:
    """A thread that copies a file to a bucket as it changes."""

    def __init__(self, path: Path, bucket: BucketFolder) -> None:
        self._path, self._bucket = path, bucket
        self._shipped = (-1, 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_shipping, name="trial-log", daemon=True)
        self._thread.start()

    def _keep_shipping(self) -> None:
        pause, ended = FIRST, False
        while not ended:
            ended = self._done.wait(pause)
            pause = EVERY
            with suppress(InputError, OSError):
                self._ship()

    def _ship(self) -> None:
        status = self._path.stat()
        if self._shipped != (stamp := (status.st_size, status.st_mtime_ns)):
            self._bucket.write(self._path.name, self._path.read_bytes())
            self._shipped = stamp

    def close(self) -> None:
        """Copies what is left."""
        self._done.set()
        self._thread.join()
