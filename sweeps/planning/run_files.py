"""Names of the files of a run that more than one module needs; and the check that all of them are its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainables.common.errors import InputError
from trainables.common.paths import RUN_SETTINGS

__all__ = ["EVENTS", "LOG", "RUN_SETTINGS", "refuse_links"]

LOG = "sweep.log"
EVENTS = "events.jsonl"
"""The record of a run: see `sweeps.recording.events`."""
_FOREIGN = (".ray", "wandb", "mlflow", "aim")
"""Folders of Ray and of trackers, which make links of their own. Nothing of ours is read from them."""
_REPLACED = "optuna.journal."
"""Starts the names of locks that a killed driver leaves, which are links; they are removed, never followed."""


def refuse_links(named: str, run: Path) -> None:
    """Refuses a run in which something is neither a file nor a folder, before anything in it is opened.

    A run may come from somebody else. A link in it would let us write, truncate or delete what it points to; a pipe or
    a device would be read forever. The run's folder itself may be a link.

    Args:
        named: the flag and the run, for messages.

    Raises:
        InputError: naming the first such path.
    """
    for entry in _entries(str(run)):
        if entry.is_symlink() or not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            kind = f"a link to {os.readlink(entry.path)}" if entry.is_symlink() else "no regular file"
            raise InputError(
                f"{named}: {entry.path} is {kind}; a run may hold only files and folders of its own; replace it with "
                "a copy, or remove it"
            )


def _entries(run: str) -> Iterator[os.DirEntry[str]]:
    """All that is in a run, also hidden. Folders that cannot be read have no entries: whoever opens one says so."""
    folders = [run]
    while folders:
        folder = folders.pop()
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if not (folder == run and entry.name.startswith(_REPLACED) and entry.is_symlink()):
                    yield entry
                if entry.is_dir(follow_symlinks=False) and not (folder == run and entry.name in _FOREIGN):
                    folders.append(entry.path)
