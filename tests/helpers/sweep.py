"""Runs the real command line in separate processes and reads its files, for the tests of whole sweeps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import small_rates
from sweeps.recording.tables import read_rows
from tests.helpers.paths import ROOT
from trainables.data.prepare import prepare
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset

SPACE = "sinsr_loss_ratios"
RATES = small_rates.__file__
"""A space whose processes start faster than SPACE's, for tests of what all sweeps have in common."""
LIGHT = {
    "pairs.train_pairs": 16,
    "pairs.validation_pairs": 3,
    "pairs.validation_size": 64,
    "pairs.test_pairs": 4,
    "training.batch_size": 2,
    "training.warmup_steps": 2,
    "training.log_every": 2,
}
"""Makes a trial of the `sample` preset a matter of seconds."""
TINY = LIGHT | {"sinsr.draws": 1}
OF_RATES = {"method": small_rates.SPACE.method, **small_rates.SPACE.fixed, **LIGHT}
"""A trial of RATES, without what the preset adds for its method."""
PATIENCE = 840.0  # seconds; a process that is stuck fails its test rather than the whole run


def sets(base: Mapping[str, object] = TINY, /, **changes: object) -> list[str]:
    """`--set` flags of `base` and of more, `training__reports=2` for `training.reports=2`."""
    values = {**base, **{name.replace("__", "."): value for name, value in changes.items()}}
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def light(results: Path, store: Path, **changes: object) -> list[str]:
    """Flags of a sweep of RATES with small trials."""
    places = ["--results", str(results), "--store", str(store)]
    return ["--space", RATES, "--perceptual", "none", *places, *sets(LIGHT, **changes)]


def run_sweep(*flags: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """`python run_sweep.py` with these flags, to its end; standard output and error apart."""
    return subprocess.run(
        [sys.executable, "run_sweep.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


class RunningSweep:
    """`python run_sweep.py` with these flags, as from a terminal: the leader of a process group of its own.

    Args:
        script: its path. cwd, env: of the process.
        prepare: called in the new process before it runs the script.
    """

    def __init__(
        self,
        *flags: str,
        script: str = "run_sweep.py",
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, script, *flags],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=prepare,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stdout)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def seen(self, pattern: str) -> int:
        """How many lines match so far."""
        return sum(bool(re.search(pattern, line)) for line in list(self.lines))

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Until so many lines match."""
        deadline = time.monotonic() + PATIENCE
        while self.seen(pattern) < count:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {pattern!r}:\n{self.text}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r} within {PATIENCE:.0f} s:\n{self.text}")
            time.sleep(0.02)

    def descendants(self) -> list[psutil.Process]:
        """Ray's processes and the trials'."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """SIGTERM to all processes of the group, as from SLURM or systemd."""
        os.killpg(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """kill -9 of the driver, and of it alone."""
        self.process.kill()

    def wait(self) -> int:
        """The exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(10)
        return status

    def close(self) -> None:
        """Ends all processes of this sweep, also after a failed test."""
        try:
            left = self.descendants()
        except psutil.NoSuchProcess:
            left = []
        self.process.kill()
        self.process.wait()
        for process in left:
            if process.is_running():
                process.kill()


@pytest.fixture
def sweeps() -> Any:
    """`sweeps(*flags)` starts a sweep that ends with the test at the latest."""
    started: list[RunningSweep] = []

    def start(*flags: str) -> RunningSweep:
        started.append(RunningSweep(*flags))
        return started[-1]

    yield start
    for sweep in started:
        sweep.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of prepared data of all tiny sweeps, one for all test processes. It has the data of SPACE: to prepare
    them in a sweep takes processes of its own.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sweep-store"
    settings = override(preset("sample").trial, TINY)
    prepare(settings, folder, method_class(settings.method).columns(settings), test=True)
    return folder


def light_trial(changes: Mapping[str, Any]) -> TrialSettings:
    """A trial of such a sweep, with other values of some settings."""
    sample = preset("sample")
    of_method = sample.methods.get(small_rates.SPACE.method, {})
    return override(sample.trial, {**of_method, "perceptual.weight": 0.0, **OF_RATES, **changes})


def only_run(results: Path) -> Path:
    """The one run in a results folder."""
    (settings,) = results.glob("*/*/settings.yaml")
    return settings.parent


def trials(run: Path, kind: str = "trial") -> dict[str, dict[str, Any]]:
    """Trial id -> its row of the leaderboard, for the trials of a kind."""
    return {row["id"]: row for row in read_rows(run / "leaderboard.parquet") if row["kind"] == kind}


def steps(run: Path, trial: str) -> list[int]:
    """The steps of a trial's reports."""
    return sorted(row["step"] for row in read_rows(run / "history.parquet") if row["id"] == trial)


def gone(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still live after so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return alive
