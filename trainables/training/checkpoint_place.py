"""Where a trial that runs keeps its checkpoints: in its folder of shared results, or in a bucket."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError
from trainables.training.bucket_checkpoints import download_newest, remove_from, upload_checkpoint
from trainables.training.checkpoint_folders import CheckpointNotWritten, drop_older, keep_checkpoint, newest_whole
from trainables.training.reporting import NodeUnfit


class CheckpointPlace:
    """The newest two checkpoints stay. Of those between two reports only the newest does, so that the last reported one
    is the other.

    Args:
        folder: on this node; with a bucket, for checkpoints on their way.
        bucket: URI of the trial's folder in a bucket, or empty.
    """

    def __init__(self, folder: Path, bucket: str) -> None:
        self.folder = folder
        self._bucket = BucketFolder(bucket) if bucket else None
        self._between: Path | None = None
        self._damaged: set[str] = set()

    def newest(self) -> tuple[Path | None, list[str]]:
        """The checkpoint from which the trial continues, on this node; and a line for each damaged one.

        Raises:
            InputError: the bucket cannot be read.
        """
        found, damaged = download_newest(self._bucket, self.folder) if self._bucket else newest_whole(self.folder)
        self._damaged = {line.partition(" ")[0] for line in damaged}
        return found, damaged

    def keep(self, step: int, write: Callable[[Path], None], between: bool = False) -> Path:
        """Writes a checkpoint.

        Args:
            write: fills an existing folder.
            between: whether it is one between two reports.

        Raises:
            CheckpointNotWritten: to the shared folder, or to the bucket: nowhere else either. Existing checkpoints are
                kept.
            NodeUnfit: the same, to the disk of this node, on its way to a bucket.
        """
        replaced = self._between if between else None
        uncounted = self._damaged | ({replaced.name} if replaced else set())  # it goes when the new one is whole
        try:
            kept = keep_checkpoint(self.folder, step, write, uncounted)
        except CheckpointNotWritten as error:
            if not self._bucket:
                raise
            raise NodeUnfit(f"--results: node {socket.gethostname()}: {error}") from error
        self._damaged.discard(kept.name)
        if self._bucket:
            upload_checkpoint(kept, self._bucket, uncounted - {kept.name})
            drop_older(self.folder, 0)
        if replaced and replaced != kept:
            self._remove(replaced)
        self._between = kept if between else None
        return kept

    def _remove(self, checkpoint: Path) -> None:
        shutil.rmtree(checkpoint, ignore_errors=True)
        if self._bucket:
            with suppress(InputError):
                remove_from(self._bucket, checkpoint.name)

    def clear(self) -> None:
        """Removes what is on this node, if the bucket has all that is needed to continue."""
        if self._bucket:
            shutil.rmtree(self.folder, ignore_errors=True)
