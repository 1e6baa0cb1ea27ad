"""Watches the processes of a local Ray: if one of them ends, the driver would wait for it forever or be aborted."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from trainables.common.command import ExitStatus
from trainables.common.output import flush_output

_CORE = ("gcs_server", "raylet")
_EVERY = 0.25  # seconds; the driver's own library aborts it some seconds after the end of a raylet
_CHILDREN_EVERY = 2.0


class RayWatch:
    """A thread that ends this process with status 1, and all that Ray started, when one of Ray's core processes ends.

    Attributes:
        report: called with the reason before the end, such as to say how to continue.
        folder: Ray's temporary folder, to be removed.
    """

    def __init__(self, report: Callable[[str], None], folder: Path) -> None:
        self.report, self.folder = report, folder
        self._done = threading.Event()
        self._started: set[psutil.Process] = set()
        self._core = [child for child in self._children() if child.name() in _CORE]
        self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops watching: Ray is about to be shut down."""
        self._done.set()

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            self._started.update(psutil.Process().children(recursive=True))
        return list(self._started)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._done.wait(_EVERY):
            if ended := [process.name() for process in self._core if not _lives(process)]:
                self._end(ended[0])
            if time.monotonic() - last > _CHILDREN_EVERY:
                self._children()
                last = time.monotonic()

    def _end(self, name: str) -> None:
        if self._done.wait(0.2):  # a shutdown that had just begun
            return
        try:
            self.report(f"Ray's process {name} ended; it was killed, or there was too little memory")
            flush_output()
        finally:
            end_children(self._children())
            shutil.rmtree(self.folder, ignore_errors=True)
            os._exit(ExitStatus.FAILED)  # the main thread may wait inside Ray's library, where no exception reaches it


def end_children(started: Sequence[psutil.Process] = ()) -> None:
    """Kills the processes below this one, such as those of a Ray that did not start, and those given."""
    for process in {*started, *psutil.Process().children(recursive=True)}:
        with suppress(psutil.Error):
            process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
