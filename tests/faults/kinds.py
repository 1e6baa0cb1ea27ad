"""The faults. Each is a function of a run folder, or of a running sweep, and of a random generator."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from sweeps.recording.tables import RunTables
from tests.faults.runs import ENDED, Sweep, signal_all

FolderFault = Callable[[Path, random.Random], None]
LiveFault = Callable[[Sweep, Path, random.Random], None]


def _garble(path: Path, random: random.Random, count: int = 64) -> None:
    content = bytearray(path.read_bytes())
    start = random.randrange(len(content) // 4, max(len(content) // 4 + 1, len(content) * 3 // 4))
    for k in range(start, min(start + count, len(content))):
        content[k] ^= 1 + random.randrange(255)
    path.write_bytes(bytes(content))


def _tear(path: Path, random: random.Random) -> None:
    """As a full disk or a lost machine leaves a file: its end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - random.randrange(1, max(2, len(content) // 3))])


def _tear_last_line(path: Path, random: random.Random) -> None:
    content = path.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(content[: random.randrange(start + 1, len(content) - 1)])


def _unfinished(run: Path) -> list[str]:
    rows = RunTables(run).load().leaderboard  # its file may be older than the record
    return [row["id"] for row in rows if row["kind"] == "trial" and row["status"] not in ENDED]


def _newest_checkpoints(run: Path) -> list[Path]:
    """The newest checkpoint of each unfinished trial that has one."""
    found = [sorted((run / "trials" / id).glob("checkpoint_*")) for id in _unfinished(run)]
    return [folders[-1] for folders in found if folders]


def _on_newest(change: Callable[[Path, random.Random], None]) -> FolderFault:
    def fault(run: Path, random: random.Random) -> None:
        for folder in _newest_checkpoints(run):
            change(folder, random)

    return fault


def _on(name: str, change: Callable[[Path, random.Random], None]) -> FolderFault:
    return lambda run, random: change(run / name, random)


def _on_record(change: Callable[[Path, random.Random], None]) -> FolderFault:
    """The record is damaged while the tables are as new as it is: on a busy machine a driver writes them later."""

    def fault(run: Path, random: random.Random) -> None:
        RunTables(run).load().flush(force=True)
        change(run / "events.jsonl", random)

    return fault


def _delete(path: Path, random: random.Random) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _delete_tables(run: Path, random: random.Random) -> None:
    for path in [*run.glob("*.parquet"), *run.glob("*.csv")]:
        path.unlink()


def _delete_finished_trial(run: Path, random: random.Random) -> None:
    for row in RunTables(run).load().leaderboard:
        if row["status"] == "finished":
            shutil.rmtree(run / "trials" / row["id"])


def _other_times(run: Path, random: random.Random) -> None:
    """As a copy leaves them, or a clock that jumped: random times for all files, some in the future."""
    for path in run.rglob("*"):
        when = time.time() + random.uniform(-1e8, 1e7)
        os.utime(path, (when, when))


def _killed_writers(run: Path, random: random.Random) -> None:
    """What a killed writer leaves: staged files and folders, a lock of Optuna's journal."""
    for id in _unfinished(run):
        staged = run / "trials" / id / ".checkpoint_000099.0123456789abcdef.partial"
        staged.mkdir(parents=True)
        (staged / "state.pt").write_bytes(b"PK half a checkpoint")
    (run / ".leaderboard.parquet.tmp").write_bytes(b"PAR1")
    (run / ".events.jsonl.tmp").write_bytes(b"{")
    os.symlink("optuna.journal", run / "optuna.journal.lock")


class Planted:
    """Unpickling it writes a file: nothing of a run folder may be unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def planted_mark(run: Path) -> Path:
    return run.parent / f"{run.name}.unpickled"


def _plant_pickles(run: Path, random: random.Random) -> None:
    """A stranger's run: pickles wherever Tune and Train would look for their state."""
    content = pickle.dumps(Planted(str(planted_mark(run))))
    stamp = "2026-11-25_20-38-45"
    for folder in (run / "trials", run / ".ray", run / ".ray" / "tune"):
        folder.mkdir(exist_ok=True)
        for name in ("tuner.pkl", "trainable.pkl", f"searcher-state-{stamp}.pkl", f"search_gen_state-{stamp}.json"):
            (folder / name).write_bytes(content)
        (folder / f"experiment_state-{stamp}.json").write_text("{}", encoding="utf-8")


def _nothing(run: Path, random: random.Random) -> None:
    """Only the driver was killed."""


FOLDER: dict[str, FolderFault] = {
    "driver killed": _nothing,
    "events: last line torn": _on_record(_tear_last_line),
    "events: garbled": _on_record(_garble),
    "events: deleted": _on_record(_delete),
    "journal: last line torn": _on("optuna.journal", _tear_last_line),
    "journal: garbled": _on("optuna.journal", _garble),
    "journal: deleted": _on("optuna.journal", _delete),
    "leaderboard deleted": _on("leaderboard.parquet", _delete),
    "history torn": _on("history.parquet", _tear),
    "per_image garbled": _on("per_image.parquet", _garble),
    "all tables deleted": _delete_tables,
    "checkpoint: state garbled": _on_newest(lambda folder, random: _garble(folder / "state.pt", random)),
    "checkpoint: state torn": _on_newest(lambda folder, random: _tear(folder / "state.pt", random)),
    "checkpoint: per_image torn": _on_newest(lambda folder, random: _tear(folder / "per_image.parquet", random)),
    "checkpoint: checksums garbled": _on_newest(lambda folder, random: _garble(folder / "checksums.json", random, 4)),
    "checkpoint: newest deleted": _on_newest(_delete),
    "folder of a finished trial deleted": _delete_finished_trial,
    "TensorBoard's files deleted": lambda run, random: [p.unlink() for p in run.glob("trials/**/events.out*")] and None,
    "TensorBoard's files garbled": lambda run, random: (
        [_garble(p, random) for p in sorted(run.glob("trials/**/events.out*"))] and None
    ),
    "clock: all times changed": _other_times,
    "left by killed writers": _killed_writers,
    "pickles planted": _plant_pickles,
}
"""Faults of the folder of a run whose driver was killed."""


def _kill_driver(sweep: Sweep, run: Path, random: random.Random) -> None:
    sweep.process.kill()


def _kill(*names: str) -> LiveFault:
    def fault(sweep: Sweep, run: Path, random: random.Random) -> None:
        signal_all(sweep.descendants(), signal.SIGKILL, *names)

    return fault


def _kill_trial(sweep: Sweep, run: Path, random: random.Random) -> None:
    victims = [process for process in sweep.descendants() if process.name().startswith("ray::ImplicitFunc")]
    if victims:
        random.choice(victims).kill()


def _to_driver(number: signal.Signals) -> LiveFault:
    return lambda sweep, run, random: sweep.process.send_signal(number)


def _to_group(number: signal.Signals) -> LiveFault:
    return lambda sweep, run, random: os.killpg(sweep.process.pid, number)


def _pause(sweep: Sweep, run: Path, random: random.Random) -> None:
    """As a laptop that sleeps, for the driver alone."""
    sweep.process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    sweep.process.send_signal(signal.SIGCONT)


LIVE: dict[str, tuple[LiveFault, tuple[int, ...], float]] = {
    "running: driver killed": (_kill_driver, (-9,), 20),
    "running: a trial killed": (_kill_trial, (0,), 600),
    "running: raylet killed": (_kill("raylet"), (1,), 60),
    "running: gcs_server killed": (_kill("gcs_server"), (1,), 60),
    "running: Ctrl-C": (_to_group(signal.SIGINT), (130,), 30),
    "running: SIGTERM": (_to_driver(signal.SIGTERM), (130,), 30),
    "running: SIGTERM to the group": (_to_group(signal.SIGTERM), (130,), 30),
    "running: SIGHUP to the group": (_to_group(signal.SIGHUP), (130,), 30),
    "running: driver paused": (_pause, (0,), 600),
}
"""Faults of a running sweep: what happens, the accepted exit statuses, and within how many seconds it must end."""

MOMENTS = ("results ", "control|store ", r"t\d+ starts", r"t\d+ (continues|step)", r"t\d+ step \d+/4", "finished")
"""Lines of the output after which a fault of a running sweep happens."""
