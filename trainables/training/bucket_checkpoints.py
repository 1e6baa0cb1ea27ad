"""The checkpoints of a trial in a bucket: complete or not at all, checked when they are read.

<trial>/checkpoint_<step>/     the objects of a checkpoint; `checksums.json` is uploaded last and deleted first

A folder without `checksums.json` is no checkpoint: its upload or its removal was interrupted. A trial writes each
checkpoint on its node's own disk first (`checkpoint_folders.keep_checkpoint`). As in a folder, the newest two are kept.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Collection, Container, Iterable
from pathlib import Path

from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError, one_line
from trainables.common.locks import locked
from trainables.common.paths import PARTIAL
from trainables.pretrained.finished_trial import CHECKSUMS, STATE, known_sums
from trainables.training.checkpoint_folders import KEPT, CheckpointNotWritten, damage

_NAME = re.compile(r"(checkpoint_(\d+))/.*")


def upload_checkpoint(checkpoint: Path, trial: BucketFolder, damaged: Collection[str] = ()) -> None:
    """Uploads a checkpoint, then removes all but the newest two from the bucket.

    Args:
        checkpoint: a whole one on this machine.
        damaged: names of those in the bucket that do not count among the newest two.

    Raises:
        CheckpointNotWritten: the bucket cannot be written. Existing checkpoints are kept.
    """
    target = trial.join(checkpoint.name)
    try:
        target.delete([CHECKSUMS])  # of an earlier attempt: a mixture of two must not look whole
        for path in sorted(checkpoint.iterdir()):
            if path.name != CHECKSUMS:
                target.upload(path, path.name)
        target.upload(checkpoint / CHECKSUMS, CHECKSUMS)
        drop_older_in(trial, KEPT, damaged)
    except (InputError, OSError) as error:
        raise CheckpointNotWritten(one_line(error)) from error


def download_newest(
    trial: BucketFolder, into: Path, wanted: Container[str] | None = None
) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, copied below `into`, or None if there is none; and a line for each damaged one.

    The processes of a machine copy it once. Content is compared with its SHA-256.

    Args:
        wanted: names of the files to copy; all by default.

    Raises:
        InputError: the bucket cannot be read, or this machine's disk not be written.
    """
    damaged: list[str] = []
    into.mkdir(parents=True, exist_ok=True)
    with locked(into.with_name(f".{into.name}.lock")):
        for name in _complete(trial.objects()):
            try:
                found = _download(trial.join(name), into / name, wanted)
            except OSError as error:
                raise InputError(f"{into}: cannot be written ({one_line(error)})") from None
            if not found:
                return into / name, damaged
            damaged.append(f"{name} is damaged ({found})")
    return None, damaged


def newest_name(trial: BucketFolder) -> str:
    """The name of the newest checkpoint in the bucket, whose content is not looked at; empty if there is none."""
    return next(iter(_complete(trial.objects())), "")


def drop_older_in(trial: BucketFolder, keep: int = 1, damaged: Collection[str] = ()) -> None:
    """Removes all checkpoints but the newest ones, and what an interrupted upload left.

    Args:
        damaged: names of checkpoints that do not count among them.
    """
    objects = trial.objects()
    complete = _complete(objects)
    oldest = [name for name in complete if name not in damaged][:keep][-1:]
    kept = complete[: complete.index(oldest[0]) + 1] if oldest else complete
    for name in {found[1] for found in map(_NAME.fullmatch, objects) if found} - set(kept):
        remove_from(trial, name)


def remove_from(trial: BucketFolder, name: str) -> None:
    """Removes a checkpoint."""
    trial.delete([f"{name}/{CHECKSUMS}"])
    trial.delete_folder(name)


def _complete(objects: Iterable[str]) -> list[str]:
    """The names of the checkpoints whose upload was complete, the newest first."""
    found = {
        match[1]: int(match[2])
        for name in objects
        if name.endswith(f"/{CHECKSUMS}") and (match := _NAME.fullmatch(name))
    }
    return sorted(found, key=lambda name: found[name], reverse=True)


def _download(source: BucketFolder, target: Path, wanted: Container[str] | None) -> str:
    """Copies one checkpoint; returns what is wrong with it, or an empty text."""
    manifest = source.read(CHECKSUMS)
    try:
        sums = known_sums(manifest)
    except ValueError as error:
        return str(error)
    # A bucket of somebody else must not make us write other files.
    if strange := [name for name in sums if Path(name).name != name or name.startswith(".")]:
        return f"{strange[0]!r} is no plain name of a file"
    if STATE not in sums:
        return f"{STATE} is missing"
    known = wanted is None and (target / CHECKSUMS).is_file() and (target / CHECKSUMS).read_bytes() == manifest
    if known and not damage(target):
        return ""  # another process of this machine has copied it
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        staged.mkdir()
        for name, sha256 in sums.items():
            if wanted is not None and name not in wanted:
                continue
            try:
                if source.download(name, staged / name) != sha256:
                    return f"the content of {name} has changed since it was written"
            except FileNotFoundError:
                return f"{name} is missing"
        if wanted is None:
            (staged / CHECKSUMS).write_bytes(manifest or b"")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
        return ""
    finally:
        shutil.rmtree(staged, ignore_errors=True)
