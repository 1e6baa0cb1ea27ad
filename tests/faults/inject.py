"""Injects one fault into a sweep, resumes it and checks what came out."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.kinds import FOLDER, LIVE, MOMENTS, planted_mark
from tests.faults.reading import ELSEWHERE, OUTSIDE, PLACED, left_behind, read_after
from tests.faults.runs import FLAGS, PATIENCE, Results, Sweep, messy, problems, repeated_too_much, tree
from tests.helpers.sweep import only_run

KILLED = (("step [23]/4", 2), ("step [23]/4", 3), ("step [23]/4", 4))
"""When the driver was killed, a line and its count: in the middle of the first trial, or of the second one."""
_SECOND_INTERVAL = ("checkpoint:",)  # the newest checkpoint is lost
_STARTS_OVER = ("events: deleted",)


@dataclass(frozen=True)
class Outcome:
    fault: str
    problems: list[str]


class Bench:
    """The folder in which sweeps are disturbed, and what an undisturbed one gives."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.store = work / "store"
        self._number = 0
        self._expected: Results | None = None
        self._killed: dict[str, Path] = {}

    def flags(self, results: Path) -> tuple[str, ...]:
        return (*FLAGS, "--results", str(results), "--store", str(self.store))

    @property
    def expected(self) -> Results:
        """The results of a sweep without a fault; made once."""
        if self._expected is None:
            results = self.work / "undisturbed"
            if not results.exists():
                sweep = Sweep(*self.flags(results))
                status = sweep.wait()
                sweep.close()
                assert status == 0, sweep.text
            self._expected = Results.of(only_run(results))
        return self._expected

    def killed(self, pattern: str, count: int) -> Path:
        """The results folder of a sweep whose driver was killed after so many lines; made once."""
        key = f"killed-{pattern.split()[0]}-{count}"
        if key not in self._killed:
            self._killed[key] = results = self.work / key
            if not results.exists():
                sweep = Sweep(*self.flags(results))
                assert sweep.wait_for(pattern, count), sweep.text
                sweep.process.kill()
                sweep.close()
        return self._killed[key]

    def copy(self, random: random.Random) -> Path:
        """A fresh copy of a killed run, in a results folder of its own."""
        return self.copy_of(self.killed(*random.choice(KILLED)))

    def copy_of(self, results: Path) -> Path:
        self._number += 1
        own = self.work / f"run-{os.getpid()}-{self._number}"
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(results, own, symlinks=True)
        return only_run(own)

    def resume(self, run: Path, cwd: Path | None = None) -> tuple[int, str, list[str]]:
        """Exit status, output and what still runs of a resumed sweep."""
        sweep = Sweep("--resume", str(run), **({"cwd": cwd} if cwd else {}))
        status = sweep.wait()
        return status, sweep.text, sweep.close()

    def run(self, name: str, random: random.Random) -> Outcome:
        assert self.expected
        if name in FOLDER:
            found = self._folder(name, random)
        elif name in LIVE:
            found = self._live(name, random)
        else:
            found = PLACES[name](self, random) if name in PLACES else MACHINES[name](self, random)
        if not found:
            shutil.rmtree(self.work / f"run-{os.getpid()}-{self._number}", ignore_errors=True)
        return Outcome(name, found)

    def read(self, name: str, random: random.Random) -> Outcome:
        """As `run`, but no trial trains."""
        run = self.copy_of(self.killed(*KILLED[-1]))  # one trial has ended: there is an answer
        found = read_after(name, run, random)
        if not found:
            shutil.rmtree(self.work / f"run-{os.getpid()}-{self._number}", ignore_errors=True)
        return Outcome(name, found)

    def _folder(self, name: str, random: random.Random) -> list[str]:
        run = self.copy(random)
        before = Results.of(run)
        FOLDER[name](run, random)
        found = self.checked(run, before, 9 if name in _STARTS_OVER else 2 if name.startswith(_SECOND_INTERVAL) else 1)
        if planted_mark(run).exists():
            found.append("a planted pickle was loaded")
        return found

    def checked(self, run: Path, before: Results, intervals: int = 1, cwd: Path | None = None) -> list[str]:
        status, output, left = self.resume(run, cwd)
        found = problems(run, self.expected, before, output, status)
        found += repeated_too_much(before, output, intervals)
        if left:
            found.append(f"still running: {', '.join(sorted(set(left)))}")
        if found:
            (run / "faults.log").write_text(output, encoding="utf-8")
        return found

    def _live(self, name: str, random: random.Random) -> list[str]:
        fault, accepted, seconds = LIVE[name]
        run = self.copy(random)
        sweep = Sweep("--resume", str(run))
        moment = random.choice(MOMENTS)
        if not sweep.wait_for(moment):
            sweep.close()
            return [f"ended with {sweep.process.returncode} before the fault"]
        before = Results.of(run)
        fault(sweep, run, random)
        status = sweep.wait(seconds)
        found = []
        if status not in (*accepted, 0):
            found.append(f"exit status {status} within {seconds:.0f} s after {moment!r}")
        if status > 0:
            found += [] if f"--resume {run}" in sweep.text else ["no line that says how to continue"]
        found += messy(sweep.text) if status != -999 else []
        left = sweep.close()
        if left and status != -999:
            found.append(f"still running: {', '.join(sorted(set(left)))}")
        if found:
            (run / "faults-first.log").write_text(sweep.text, encoding="utf-8")
        return found + self.checked(run, before)


def _placed(name: str) -> Callable[[Bench, random.Random], list[str]]:
    """A run in another place, or seen from another one."""

    def fault(bench: Bench, random: random.Random) -> list[str]:
        original = bench.copy(random)
        before, content = Results.of(original), tree(original)
        run = PLACED[name](original)
        found = bench.checked(run, before, cwd=OUTSIDE if name == ELSEWHERE else None)
        return found + left_behind(name, original, content)

    return fault


def _resumed_twice(bench: Bench, random: random.Random) -> list[str]:
    """A run that has ended is resumed: nothing is trained, nothing changes."""
    results = bench.work / "undisturbed"
    own = bench.work / "run-ended"
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(results, own)
    run = only_run(own)
    return bench.checked(run, Results.of(run))


PLACES: dict[str, Callable[[Bench, random.Random], list[str]]] = {
    **{name: _placed(name) for name in PLACED},
    "a finished run resumed": _resumed_twice,
}


def _refused(sweep: Sweep, *parts: str) -> list[str]:
    """Status 2 and one line that names the cause."""
    status = sweep.wait(PATIENCE)
    sweep.close()
    found = [] if status == 2 else [f"exit status {status}"]
    last = sweep.lines[-1] if sweep.lines else ""
    found += [f"{part!r} is not in {last!r}" for part in parts if part not in last]
    return found + messy(sweep.text) + ([f"{len(sweep.lines)} lines"] if len(sweep.lines) > 1 else [])


def _with_environment(name: str, value: Callable[[Bench], str]) -> Callable[[Bench, random.Random], list[str]]:
    """A resume that must succeed with this variable."""

    def fault(bench: Bench, random: random.Random) -> list[str]:
        run = bench.copy(random)
        before = Results.of(run)
        sweep = Sweep("--resume", str(run), env={name: value(bench)})
        status = sweep.wait()
        left = sweep.close()
        found = problems(run, bench.expected, before, sweep.text, status)
        return found + ([f"still running: {left}"] if left else [])

    return fault


def _long_folder(bench: Bench) -> str:
    folder = bench.work / ("long" * 20)
    folder.mkdir(exist_ok=True)
    return str(folder)


def _bad_tmpdir(bench: Bench, random: random.Random) -> list[str]:
    folder = random.choice(("/proc/nowhere", "/etc/hostname", "/sys"))
    sweep = Sweep("--resume", str(bench.copy(random)), env={"TMPDIR": folder})
    return _refused(sweep, f"TMPDIR {folder}")


def _little_address_space(bench: Bench, random: random.Random) -> list[str]:
    limit = random.choice((6, 10)) * 2**30
    sweep = Sweep(
        *("--resume", str(bench.copy(random))),
        prepare=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    return _refused(sweep, "ulimit -v")


@contextmanager
def _small_disk(folder: Path, megabytes: int):
    """A file system of this size; needs the right to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _small_tmpdir(bench: Bench, random: random.Random) -> list[str]:
    folder = bench.work / "small"
    with _small_disk(folder, 20):
        sweep = Sweep("--resume", str(bench.copy(random)), env={"TMPDIR": str(folder)})
        return _refused(sweep, f"TMPDIR {folder}", "disk")


def _fill(folder: Path) -> None:
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass


def _disk_full(bench: Bench, random: random.Random) -> list[str]:
    """The disk of the results is full while trials run; then there is room again."""
    source, disk = bench.copy(random), bench.work / "disk"
    with _small_disk(disk, 400):
        results = disk / "results"
        shutil.copytree(source.parents[1], results, symlinks=True)
        run = only_run(results)
        sweep = Sweep("--resume", str(run))
        sweep.wait_for(random.choice((r"t\d+ (continues|starts)", r"step \d+/4")))
        before = Results.of(run)
        _fill(disk)
        status = sweep.wait(120)
        found = [] if status in (0, 1) else [f"exit status {status}"]
        found += messy(sweep.text) + ([] if status == 0 or f"--resume {run}" in sweep.text else ["no resume line"])
        sweep.close()
        (bench.work / "disk-full.log").write_text(sweep.text, encoding="utf-8")
        (disk / "filler").unlink()
        return found + bench.checked(run, before)


def _tmpdir_full(bench: Bench, random: random.Random) -> list[str]:
    """TMPDIR is full while trials run."""
    run, disk = bench.copy(random), bench.work / "tmp"
    with _small_disk(disk, 300):
        sweep = Sweep("--resume", str(run), env={"TMPDIR": str(disk)})
        sweep.wait_for(r"results ")
        before = Results.of(run)
        _fill(disk)
        status = sweep.wait(300)
        found = [] if status in (0, 1) else [f"exit status {status}"]
        found += messy(sweep.text) + ([] if status == 0 or "TMPDIR" in sweep.text else ["TMPDIR is not named"])
        sweep.close()
        (bench.work / "tmpdir-full.log").write_text(sweep.text, encoding="utf-8")
    return found + bench.checked(run, before)


def _read_only(bench: Bench, random: random.Random) -> list[str]:
    source, disk = bench.copy(random), bench.work / "read-only"
    with _small_disk(disk, 400):
        results = disk / "results"
        shutil.copytree(source.parents[1], results, symlinks=True)
        run = only_run(results)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return _refused(Sweep("--resume", str(run)), str(run))


MACHINES: dict[str, Callable[[Bench, random.Random], list[str]]] = {
    "TMPDIR too long for a socket": _with_environment("TMPDIR", _long_folder),
    "HOME cannot be written": _with_environment("HOME", lambda bench: "/proc/nowhere"),
    "TMPDIR cannot be written": _bad_tmpdir,
    "ulimit -v": _little_address_space,
}
MOUNTS: dict[str, Callable[[Bench, random.Random], list[str]]] = {
    "TMPDIR too small": _small_tmpdir,
    "TMPDIR full while trials run": _tmpdir_full,
    "results: disk full while trials run": _disk_full,
    "results read-only": _read_only,
}
if os.geteuid() == 0 and shutil.which("mount"):
    MACHINES |= MOUNTS


def all_faults() -> list[str]:
    return [*FOLDER, *LIVE, *PLACES, *MACHINES]


__all__ = ["Bench", "Outcome", "all_faults"]
