"""The checkpoints in a trial's folder: written completely or not at all, checked when they are read.

trials/<id>/checkpoint_<step>/     a checkpoint; its `checksums.json` is written last
trials/<id>/.<name>.<key>.partial  a checkpoint that is being written; the next writer removes what a killed one left

The newest two are kept while a trial runs: if the newest is damaged, the trial continues from the one before it.
"""

from __future__ import annotations

import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path

from trainables.common.archives import refuse_packed
from trainables.common.errors import one_line
from trainables.common.paths import PARTIAL, replace_folder
from trainables.common.units import byte_text
from trainables.pretrained.finished_trial import CHECKSUMS, STATE, sha256, write_checksums

KEPT = 2
"""Checkpoints of a trial that runs."""
_OLDER_GROUP = "group"  # version 0.1 kept the checkpoints of worker groups in this folder of the trial


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written. The message names the folder, the reason and the free space."""


def keep_checkpoint(trial: Path, step: int, write: Callable[[Path], None], damaged: Collection[str] = ()) -> Path:
    """Writes a checkpoint and removes all but the newest two; returns its folder.

    Args:
        trial: the trial's folder.
        write: fills an existing folder.
        damaged: see `drop_older`.

    Raises:
        CheckpointNotWritten: for example, because the disk is full. Existing checkpoints are kept.
    """
    folder = trial / f"checkpoint_{step:06d}"
    staged = trial / f".{folder.name}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        staged.mkdir(parents=True)
        write(staged)
        write_checksums(staged, step)
        replace_folder(staged, folder)  # one of an earlier attempt, or damaged
    except Exception as error:  # torch, safetensors and pyarrow raise their own types when a disk is full
        shutil.rmtree(staged, ignore_errors=True)
        raise CheckpointNotWritten(f"{folder}: cannot be written ({one_line(error)}{_room(trial)})") from error
    drop_older(trial, KEPT, damaged)
    return folder


def drop_older(trial: Path, keep: int = 1, damaged: Collection[str] = ()) -> None:
    """Removes all checkpoints but the newest ones, and what a killed writer left.

    Args:
        damaged: names of checkpoints that do not count among them.
    """
    whole = 0
    for folder in sorted_checkpoints(trial):
        if whole >= keep:
            shutil.rmtree(folder, ignore_errors=True)
        whole += folder.name not in damaged
    for left in trial.glob(f".checkpoint_*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)


def newest_whole(trial: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint from which a trial continues, or None to start over; and a line for each damaged one."""
    damaged: list[str] = []
    for folder in sorted_checkpoints(trial):
        if found := damage(folder):
            damaged.append(f"{folder.name} is damaged ({found})")
        else:
            return folder, damaged
    return None, damaged


def newest_name(trial: Path) -> str:
    """The name of the newest checkpoint, whose content is not looked at; empty if there is none."""
    return next((folder.name for folder in sorted_checkpoints(trial)), "")


def sorted_checkpoints(trial: Path) -> list[Path]:
    """The folders of checkpoints, the newest first."""
    found = [*trial.glob("checkpoint_*"), *trial.glob(f"{_OLDER_GROUP}/checkpoint_*")]
    return sorted(found, key=_age, reverse=True)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing.

    A checkpoint of version 0.1 has no checksums. There, only those inside the archive of its state are checked.
    """
    try:
        if not _is_own_file(folder, CHECKSUMS):
            if not _is_own_file(folder, STATE):
                return f"{STATE} is missing"
            refuse_packed(folder / STATE)
            with zipfile.ZipFile(folder / STATE) as archive:
                return f"{STATE} is damaged at {wrong}" if (wrong := archive.testzip()) else ""
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["sha256"]
        # A checkpoint of somebody else must not make us read other files, or one that never ends.
        if strange := [name for name in {STATE, *sums} if not _is_own_file(folder, name)]:
            return f"{strange[0]!r} is missing, a link, or outside of the checkpoint"
        changed = [name for name in {STATE, *sums} if sha256(folder / name) != sums.get(name)]
        return f"the content of {', '.join(changed)} has changed since it was written" if changed else ""
    except Exception as error:  # of a damaged archive or text: many types
        return one_line(error)


def _age(folder: Path) -> tuple[int, float]:
    """The step; copies of a run have new times. Version 0.1 counted checkpoints instead, and kept one or two."""
    number = folder.name.rpartition("_")[2]
    if (folder / CHECKSUMS).exists() and number.isdigit():
        return int(number), 0.0
    state = folder / STATE
    return -1, state.stat().st_mtime if state.exists() else 0.0


def _is_own_file(folder: Path, name: str) -> bool:
    path = folder / name
    return Path(name).name == name and path.is_file() and not path.is_symlink()


def _room(folder: Path) -> str:
    try:
        return f"; {byte_text(shutil.disk_usage(folder).free)} are free"
    except OSError:
        return ""
