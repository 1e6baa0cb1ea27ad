"""The lease of a run in a bucket: what a lock file is for a run in a folder.

    lease.json    {"holder": "process 12 on host", "machine": "...", "token": "..."}

The driver writes it, and writes it again every `RENEW` seconds. A lease that was not renewed for `EXPIRES` seconds is
that of a dead driver, and anybody may take the run. Its age is measured by the bucket's own clock. A dead driver of the
same machine is recognised at once.

pyarrow has no conditional writes. A driver therefore writes its lease, waits, and reads it again: of two that take a
run at the same moment, the later writer has it, and the other one is refused. The remaining race: a driver that is held
up for more than `SETTLE` seconds between reading and writing takes the run from one that already works. That one
notices when it renews its lease, and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError, one_line
from trainables.common.units import duration

LEASE = "lease.json"
RENEW, EXPIRES = 20.0, 120.0  # seconds
SETTLE = 1.0  # seconds: many times what a write takes


class Lease:
    """The lease of a run, renewed by a thread until it is released.

    Args:
        run: the run's folder in the bucket.

    Attributes:
        lost: why this driver does not have the run any more; empty while it has.

    Raises:
        InputError: a driver that may run has the lease, or the bucket cannot be reached.
    """

    def __init__(self, run: BucketFolder) -> None:
        self._run = BucketFolder(run.uri, patient=False)
        self._token = uuid.uuid4().hex
        self.lost = ""
        self._told: Callable[[str], None] = lambda reason: None
        self._take()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def when_lost(self, tell: Callable[[str], None]) -> None:
        """Calls `tell` with the reason when the lease is lost, from a thread."""
        self._told = tell
        if self.lost:
            tell(self.lost)

    def release(self) -> None:
        """Gives the run back, if this driver still has it."""
        self._done.set()
        self._thread.join(EXPIRES)
        with suppress(InputError):  # then it expires
            if self._holder().get("token") == self._token:
                self._run.delete([LEASE])

    def _take(self) -> None:
        self._refuse_if_held()
        self._write()
        time.sleep(SETTLE)
        self._refuse_if_held()

    def _refuse_if_held(self) -> None:
        found = self._holder()
        if not found or found.get("token") == self._token or _is_dead(found):
            return
        clock = f"clock-{self._token}"
        self._run.write(clock, b"{}")
        age = self._run.changed(clock) - self._run.changed(LEASE)
        self._run.delete([clock])
        if age < EXPIRES:
            raise InputError(
                f"{self._run}: in use by a running sweep ({found.get('holder', 'another process')}, seen "
                f"{duration(max(0.0, age))} ago); wait for it or stop it first. If it has died, the run can be "
                f"resumed in {duration(EXPIRES - age)}"
            )

    def _holder(self) -> dict[str, Any]:
        """The content of the lease; empty without one, or if it is damaged."""
        with suppress(ValueError, RecursionError):
            found = json.loads(self._run.read(LEASE) or b"{}")
            return found if isinstance(found, dict) else {}
        return {}

    def _write(self) -> None:
        content = {
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "process": os.getpid(),
            "machine": _machine(),
            "token": self._token,
        }
        self._run.write(LEASE, json.dumps(content, indent=1).encode())

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._done.wait(RENEW):
            why = ""
            try:
                found = self._holder()
                if found.get("token", self._token) != self._token:
                    self._lose(f"{self._run}: {found.get('holder', 'another process')} has taken over this run")
                    return
                self._write()
                renewed = time.monotonic()
            except InputError as error:
                why = one_line(error)
            if time.monotonic() - renewed > EXPIRES:
                self._lose(f"{self._run}: its lease has expired ({why}); another driver may take over this run")
                return

    def _lose(self, reason: str) -> None:
        self.lost = reason
        self._told(reason)


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and has ended."""
    process = holder.get("process")
    return holder.get("machine") == _machine() and isinstance(process, int) and not psutil.pid_exists(process)


def _machine() -> str:
    """This machine since its last start, and the process ids as seen from here: a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {uuid.getnode()} {psutil.boot_time():.0f}"
