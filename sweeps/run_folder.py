"""The folder of one run: its name, its lock and its settings.yaml."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from sweeps.settings import Question, SweepSettings
from trainables.data.roots import check_writable
from trainables.errors import InputError
from trainables.settings import flatten

SETTINGS, LOG = "settings.yaml", "sweep.log"
_LOCK = ".lock"
_VERSIONS = ("torch", "ray", "optuna", "diffusers", "torchmetrics", "pyarrow")


class RunFolder:
    """A run folder that this process owns until it ends, however it ends: the kernel holds the lock, so a killed
    driver leaves none behind. The lock is seen by other machines where the file system passes `flock` on.

    Raises:
        InputError: a living sweep owns it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._lock, 200).decode(errors="replace").strip() or "another process"
            os.close(self._lock)
            raise InputError(f"{path}: in use by a running sweep ({owner}); wait for it or stop it first") from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode())

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    def close(self) -> None:
        os.close(self._lock)


def check_results(flag: str, path: Path) -> None:
    """Refuses, making nothing, a folder that runs or prepared data cannot be kept in.

    Raises:
        InputError: it is itself the folder of a run, or it is not there and cannot be made.
    """
    if (path / SETTINGS).exists():
        raise InputError(f"{flag} {path}: this is the folder of a run; expected the folder that holds runs")
    check_writable(flag, path)


def create_run(question: Question, metrics: tuple[str, ...], objective: str, stores: Mapping[str, str]) -> RunFolder:
    """A new folder results/<space>/<time>/, locked, with its settings.yaml.

    Raises:
        InputError: the results folder cannot be written.
    """
    results = Path(question.settings.results).expanduser()
    parent = results / question.space.name
    name = time.strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(100):
            path = parent / (f"{name}-{attempt}" if attempt else name)
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
        folder = RunFolder(path)
    except OSError as error:
        raise InputError(f"--results {results}: cannot be written ({error.strerror})") from None
    record = {
        "command": asdict(question.settings) | {"set": [list(pair) for pair in question.settings.set]},
        "question": question.space.question,
        "objective": objective,
        "metrics": list(metrics),
        "trials": question.trials,
        "trial": _plain(flatten(question.trial)),
        "stores": dict(stores),
        "versions": _versions(),
        "commit": _commit(),
    }
    temporary = folder.path / f".{SETTINGS}"
    temporary.write_text(yaml.safe_dump(record, sort_keys=False))
    temporary.rename(folder.path / SETTINGS)
    return folder


def open_run(path: Path) -> tuple[RunFolder, SweepSettings, dict[str, Any]]:
    """An existing run, locked: its folder, the settings it was started with, and its whole settings.yaml.

    Raises:
        InputError: not the folder of a run, or a living sweep owns it.
    """
    try:
        record = yaml.safe_load((path / SETTINGS).read_text())
        command = {**record["command"], "set": tuple(map(tuple, record["command"]["set"]))}
        settings = SweepSettings(**command)
        _ = record["metrics"], record["stores"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise InputError(f"--resume {path}: not the folder of a run; expected one with a {SETTINGS}") from None
    return RunFolder(path), settings, record


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VERSIONS}}


def _commit() -> str:
    """The commit the code is at, with + if it was changed since; empty outside a git checkout."""
    root = Path(__file__).parent.parent
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
