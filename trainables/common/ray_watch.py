"""Watches the processes of a local Ray, or the head of a cluster: if one of them ends, the driver would wait for it
forever or be aborted by Ray's library."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from trainables.common.cluster import NoCluster, answering_nodes
from trainables.common.command import ExitStatus
from trainables.common.output import flush_output

_CORE = ("gcs_server", "raylet")
_EVERY = 0.25  # seconds; the driver's own library aborts it some seconds after the end of a raylet
_CHILDREN_EVERY = 2.0
_ABORT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own setting: after so many seconds without the head, 60 by default, its library aborts the driver. The head
counts as lost after two thirds of them."""
_TRIES = 3
"""The head is asked at least so often before it counts as lost."""


class _Watch:
    """A thread that ends this process with status 1, and what it started.

    Args:
        report: called with the reason before the end, such as to say how to continue.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self._done = threading.Event()
        self._started: set[psutil.Process] = set()

    def _start(self, *work: Callable[[], None]) -> None:
        for one in work:
            threading.Thread(target=one, name=type(self).__name__, daemon=True).start()

    def close(self) -> None:
        """Stops watching: Ray is about to be shut down."""
        self._done.set()

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            self._started.update(psutil.Process().children(recursive=True))
        return list(self._started)

    def _end(self, reason: str) -> None:
        if self._done.wait(0.2):  # a shutdown that had just begun
            return
        try:
            self.report(reason)
            flush_output()
        finally:
            end_children(self._children())
            self._clear()
            os._exit(ExitStatus.FAILED)  # the main thread may wait inside Ray's library, where no exception reaches it

    def _clear(self) -> None:
        pass


class RayWatch(_Watch):
    """Waits for the end of a core process of a local Ray.

    Attributes:
        folder: Ray's temporary folder, to be removed.
    """

    def __init__(self, report: Callable[[str], None], folder: Path) -> None:
        super().__init__(report)
        self.folder = folder
        self._core = {_name(child): child for child in self._children() if _lives(child)}  # not of a failed start
        self._start(self._watch)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._done.wait(_EVERY):
            # One that is missing ended before it could be listed.
            if ended := [name for name in _CORE if name not in self._core or not _lives(self._core[name])]:
                self._end(f"Ray's process {ended[0]} ended; it was killed, or there was too little memory")
            if time.monotonic() - last > _CHILDREN_EVERY:
                self._children()
                last = time.monotonic()

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class HeadWatch(_Watch):
    """Asks the head of a cluster whether it lives, and waits for the end of this machine's own raylet.

    Args:
        head: HOST:PORT.
        raylet: socket of this machine's raylet.
    """

    def __init__(self, report: Callable[[str], None], head: str, raylet: str) -> None:
        super().__init__(report)
        self._head = head
        self._patience = float(os.environ.get(_ABORT) or 60.0) * 2 / 3
        self._own = [
            process
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "raylet" and f"--raylet_socket_name={raylet}" in (process.info["cmdline"] or ())
        ]
        self._start(self._watch, self._ask)

    def _ask(self) -> None:
        every, limit = self._patience / 20, self._patience / (_TRIES + 1)
        silent = 0.0
        while not self._done.wait(every):
            began = time.monotonic()
            try:
                answering_nodes(self._head, limit)
            except NoCluster:
                # If this process was stopped meanwhile, the head was not silent for as long.
                silent += every + min(time.monotonic() - began, limit)
            except Exception:  # of this process, such as too many open files: says nothing about the head
                continue
            else:
                silent = 0.0
            if silent >= self._patience:
                self._end(f"the cluster's head {self._head} has not answered for {silent:.0f} s")

    def _watch(self) -> None:
        while not self._done.wait(_EVERY):
            if not all(map(_lives, self._own)):
                self._end("the raylet of this machine ended; it was killed, or the cluster was stopped")


def end_children(started: Sequence[psutil.Process] = ()) -> None:
    """Kills the processes below this one, such as those of a Ray that did not start, and those given."""
    kill({*started, *psutil.Process().children(recursive=True)})


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills those that still live."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:  # it has ended
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
