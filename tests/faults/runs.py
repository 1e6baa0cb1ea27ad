"""Tiny sweeps for the fault injector: real processes, and what must hold afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sweeps.recording.tables import RunTables, TableRow
from tests.helpers.paths import ROOT
from tests.helpers.sweep import RATES, RunningSweep

STEPS, REPORTS = 4, 4
INTERVAL = STEPS // REPORTS
TRIALS = 3
FLAGS = (
    *("--space", RATES, "--perceptual", "none", "--trials", str(TRIALS), "--max-steps", str(STEPS)),
    *("--set", "pairs.train_pairs=16", "--set", "pairs.validation_pairs=3", "--set", "pairs.validation_size=64"),
    *("--set", "training.batch_size=2", "--set", "training.warmup_steps=2", "--set", "training.log_every=2"),
    *("--set", f"training.reports={REPORTS}", "--max-concurrent", "1", "--confirm", "0"),
)
"""Three trials of a small Pix2Pix, without a confirmation. Most of their time is the start of processes."""
PATIENCE = 600.0  # seconds, on a busy machine; a sweep that takes longer hangs
ENDED = ("finished", "stopped")
MEASURED = ("val/", "loss/", "weighted/")


_AGENTS = ("dashboard/agent.py", "runtime_env/agent/main.py")


class Sweep(RunningSweep):
    """A running command line. Its output is read all the time; `close` ends it and all that it started."""

    def __init__(
        self,
        *flags: str,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})}
        super().__init__(*flags, script=str(ROOT / "run_sweep.py"), cwd=cwd, env=environment, prepare=prepare)
        self.started: set[psutil.Process] = set()

    def descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            self.started.update(psutil.Process(self.process.pid).children(recursive=True))
        return [process for process in self.started if process.is_running()]

    def wait_for(self, pattern: str, count: int = 1) -> bool:
        """Waits until so many lines match; False if the sweep ends before."""
        deadline = time.monotonic() + PATIENCE
        while self.seen(pattern) < count:
            self.descendants()
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit status; -999 if it hangs."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.descendants()
            if time.monotonic() > deadline:
                return -999
            time.sleep(0.1)
        self._reader.join(10)
        return self.process.returncode

    def close(self) -> list[str]:
        """Ends what still runs; returns its names. Ray's two agents may wait a minute for a head that was killed."""
        left = self.descendants()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        else:
            _, left = psutil.wait_procs(left, timeout=20)
        names = []
        for process in left:
            try:
                names.append(process.name())
                if any(part.endswith(_AGENTS) for part in process.cmdline()):
                    names[-1] = "agent"  # one that has just started gets its own name a little later
                process.kill()
            except psutil.Error:
                continue
        return [name for name in names if "agent" not in name.lower()]


@dataclass
class Results:
    """What a run has recorded: trial -> its row, (trial, step) -> metrics, (trial, image) -> metrics."""

    trials: dict[str, TableRow] = field(default_factory=dict)
    reports: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    images: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Path) -> Results:
        tables = RunTables(run).load()  # files of tables may be older than the record
        return cls(
            {row["id"]: row for row in tables.leaderboard if row["kind"] == "trial"},
            {(row["id"], row["step"]): _measured(row) for row in tables.history},
            {(row["id"], row["image"]): _measured(row) for row in tables.per_image},
        )

    @property
    def ends(self) -> dict[str, tuple[str, int]]:
        """Trial -> its status and its last step."""
        return {id: (row["status"], row["steps"]) for id, row in self.trials.items()}


def _measured(row: TableRow) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith(MEASURED) and value is not None}


def problems(run: Path, expected: Results, before: Results, output: str, status: int) -> list[str]:
    """What is wrong with a run after its last resume; empty if nothing.

    Args:
        expected: an undisturbed run's.
        before: the run's results before the fault.
        output: of the resumed command line.
    """
    found = [] if status == 0 else [f"exit status {status}"]
    now = Results.of(run)
    if now.ends != expected.ends:
        found.append(f"trials: {now.ends}")
    for id, row in before.trials.items():
        if row["status"] in ENDED:
            changed = [name for name, value in row.items() if now.trials[id].get(name) != value]
            if changed:
                found.append(f"{id} had ended and changed: {', '.join(changed)}")
            if re.search(rf" {id} starts", output):
                found.append(f"{id} had ended and was trained again")
    for name in ("reports", "images"):
        ours, theirs = getattr(now, name), getattr(expected, name)
        if ours.keys() != theirs.keys():
            found.append(f"{name}: {sorted(ours.keys() ^ theirs.keys())}")
        different = [key for key in ours.keys() & theirs.keys() if not _same(ours[key], theirs[key])]
        if different:
            found.append(f"{name} have other numbers: {sorted(different)}")
    found += [f"half-written: {path.relative_to(run)}" for path in run.rglob("*") if half_written(path)]
    return found + messy(output)


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """The last digit of the validation; losses are missing where only a checkpoint kept the report."""
    return all(value == theirs.get(name) for name, value in ours.items()) and all(
        name in ours for name in theirs if name.startswith("val/")
    )


def half_written(path: Path) -> bool:
    return path.name.endswith((".tmp", ".partial")) or path.name == ".ray"


def messy(output: str) -> list[str]:
    """Tracebacks and messages of Ray's libraries in an output."""
    marks = ("Traceback", "*** SIG", "Error: ", "check_failure", " E ", " C ")
    return [f"output has {mark!r}" for mark in marks if mark in output]


def repeated_too_much(before: Results, output: str, intervals: int) -> list[str]:
    """Trials that trained more steps again than these intervals between checkpoints."""
    found = []
    for id, start in re.findall(r" (t\d+) (?:continues|starts over) at step (\d+)", output):
        last = max((step for trial, step in before.reports if trial == id), default=0)
        if last - int(start) > intervals * INTERVAL:
            found.append(f"{id} had reported step {last} and continued at step {start}")
    return found


def tree(folder: Path) -> dict[str, str]:
    """Path -> hash of its content, of all files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def signal_all(processes: Sequence[psutil.Process], number: signal.Signals, *names: str) -> int:
    """Sends a signal to the processes with one of these names; returns how many."""
    found = [process for process in processes if process.is_running() and process.name() in names]
    for process in found:
        process.send_signal(number)
    return len(found)
