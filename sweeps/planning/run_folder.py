"""The folder of one run: its name and its lock. Its results may be in a bucket."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sweeps.planning.own_spaces import keep_space
from sweeps.planning.question import Question, Started
from sweeps.planning.run_bucket import RunBucket, place_of
from sweeps.planning.run_files import RUN_SETTINGS, refuse_links
from sweeps.planning.run_settings import (
    UNCONFIRMED,
    command_of,
    located,
    located_in_bucket,
    new_record,
    recorded_settings,
    settings_in,
    started_with,
    write_record,
)
from sweeps.planning.settings import SweepSettings
from trainables.common.buckets import BucketFolder, check_bucket
from trainables.common.errors import InputError
from trainables.common.locks import take
from trainables.common.paths import HALF_WRITTEN, is_uri, path_of
from trainables.training import bucket_checkpoints, checkpoint_folders
from trainables.training.checkpoint_folders import drop_older, newest_whole

_INPUTS = ("data", "data_input", "data_target", "checkpoint", "set")
_LIMITS = ("trials", "confirm_steps", "time_budget", "budget_usd", "price_per_hour")
GOING_ON = (*_LIMITS, "address", "stop_seconds", *_INPUTS)
"""Settings that a resumed run may change."""
_LOCK = ".lock"


class RunFolder:
    """A run folder that this process locks until it ends. The kernel releases the lock, also if the process is killed.
    Other machines see the lock if the file system supports `flock` across machines. On one without locks, the process
    that its lock file names is looked for.

    Args:
        path: the folder; with a bucket, its working copy on this machine.
        bucket: where the run is, if its results are in a bucket.

    Raises:
        InputError: a running sweep has locked it.
    """

    def __init__(self, path: Path, bucket: RunBucket | None = None) -> None:
        self.path, self.bucket = path, bucket
        self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        taken, owner = take(self._lock), os.read(self._lock, 200).decode(errors="replace").strip()
        unknown = taken is None and _may_run(owner)
        if taken is False or unknown:
            os.close(self._lock)
            remedy = f"; if it has ended, delete {path / _LOCK}" if unknown else ""
            raise InputError(
                f"{path}: in use by a running sweep ({owner or 'another process'}); wait for it or stop it "
                f"first{remedy}"
            )
        os.lseek(self._lock, 0, os.SEEK_SET)
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._remove_half_written()

    def _remove_half_written(self) -> None:
        """Removes what a killed driver was writing. Trials stage their checkpoints in folders of other names."""
        for folder in (self.path, self.path / "report", *self.trials.glob("*")):
            for left in folder.glob(f".*{HALF_WRITTEN}"):
                with suppress(OSError):
                    left.unlink()

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    @property
    def scratch(self) -> Path:
        """Files of Ray Tune and Train that are never read again. Tune wants one folder for all nodes of a cluster."""
        return self.path / ".ray"

    def go_on(self, record: Mapping[str, Any], settings: SweepSettings, trials: int) -> None:
        """Records what a resumed run changed, in its settings.yaml.

        Args:
            record: the whole settings.yaml so far.
            trials: number of trials of the search.
        """
        now = command_of(settings)
        before = command_of(settings_in(dict(record))[0])  # with the trials and steps that it left to a preset
        changes = {name: now[name] for name in GOING_ON}
        changed = {name: value for name, value in changes.items() if before[name] != value}
        if not changed:
            return
        earlier = [*record.get("continued", []), {"at": time.strftime("%Y-%m-%d %H:%M:%S"), **changed}]
        command = {**record["command"], **changes}
        record = {key: value for key, value in record.items() if key != UNCONFIRMED}
        try:
            write_record(self.path, {**record, "command": command, "trials": trials, "continued": earlier})
        except OSError as error:
            raise InputError(f"--resume {self.path}: cannot be written ({error.strerror})") from None
        if self.bucket:
            self.bucket.sync()

    def clear_scratch(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start_uploading(self, stop: Callable[[str], None], say: Callable[[str], None]) -> None:
        """See `RunBucket.start`; without a bucket there is nothing to do."""
        if self.bucket:
            self.bucket.start(stop, say)

    def sync(self) -> None:
        """Uploads what has changed, if results are in a bucket.

        Raises:
            OSError: the bucket cannot be written, or another driver has taken over the run.
        """
        if self.bucket:
            with _failing():
                self.bucket.sync()

    def go_on_in_bucket(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Prepares a run in a bucket for its next trials; returns the ids of trials that were set aside: see
        `RunBucket.set_aside`. In a folder, the recorder does it.

        Args:
            rows: of the leaderboard.
        """
        if not self.bucket:
            return []
        status = {row["id"]: row["status"] for row in rows}
        self.bucket.trials_ended(id for id, now in status.items() if now in ("finished", "stopped"))
        with _failing():
            return self.bucket.set_aside(lambda id: id in status)

    def trial_ended(self, id: str) -> None:
        """Keeps only the newest checkpoint of a trial."""
        if self.bucket:
            self.bucket.trial_ended(id)
        else:
            drop_older(self.trials / id)

    def without_checkpoint(self, ids: Sequence[str], look_inside: bool) -> list[str]:
        """Those of these trials that have no checkpoint.

        Args:
            look_inside: whether damaged ones do not count; in a bucket they always do.
        """
        if self.bucket:
            with _failing():
                kept = self.bucket.with_checkpoints()
        elif look_inside:
            kept = {id for id in ids if newest_whole(self.trials / id)[0]}
        else:
            kept = {checkpoint.parent.name for checkpoint in self.trials.glob("*/checkpoint_*")}
        return [id for id in ids if id not in kept]

    def newest_name(self, id: str) -> str:
        """The name of a trial's newest checkpoint, whose content is not looked at; empty if there is none, or if the
        bucket does not answer."""
        if self.bucket:
            with suppress(InputError):
                return bucket_checkpoints.newest_name(self.bucket.trial(id))
            return ""
        return checkpoint_folders.newest_name(self.trials / id)

    def newest(self, id: str, wanted: tuple[str, ...]) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint of a trial, with these files at least; and a line for each damaged one."""
        with _failing():
            return self.bucket.newest(id, wanted) if self.bucket else newest_whole(self.trials / id)

    def close(self) -> None:
        if self.bucket:
            self.bucket.close()
        os.ftruncate(self._lock, 0)
        os.close(self._lock)


@contextmanager
def _failing() -> Iterator[None]:
    """Inside, a bucket that fails is an `OSError`, as a disk that fails: it stops the sweep."""
    try:
        yield
    except InputError as error:
        raise OSError(str(error)) from None


def _may_run(owner: str) -> bool:
    """Whether the process that a lock file names may still run: on this machine it is looked for."""
    found = re.fullmatch(r"process (\d+) on (.+)", owner)
    if found is None or int(found[1]) == os.getpid():
        return False
    return found[2] != socket.gethostname() or psutil.pid_exists(int(found[1]))


def create_run(
    question: Question,
    metrics: tuple[str, ...],
    objectives: Sequence[str],
    stores: Mapping[str, str],
    store: str = "",
    keep: Callable[[Path], None] = lambda folder: None,
) -> RunFolder:
    """A new folder results/<space>/<time>/, locked, with its settings.yaml. In a bucket, it is there when this returns.

    Args:
        objectives, stores, store: see `new_record`.
        keep: called with the folder, to write what else the run needs before settings.yaml makes it a run.

    Raises:
        InputError: the results folder or bucket cannot be written.
    """
    results = question.settings.results
    folder = (_new_in_bucket if is_uri(results) else _new_folder)(results, question.space.name)
    try:
        keep_space(folder.path, question.space)
        keep(folder.path)
        write_record(folder.path, new_record(question, metrics, objectives, stores, store))
        if folder.bucket:
            folder.bucket.sync()
    except InputError:
        folder.close()
        raise
    except OSError as error:
        folder.close()
        raise InputError(f"--results {results}: {folder.path} cannot be written ({error.strerror})") from None
    return folder


def _names() -> Iterator[str]:
    """Names for a new run: the time, then with a number."""
    name = time.strftime("%Y%m%d-%H%M%S")
    yield from (f"{name}-{attempt}" if attempt else name for attempt in range(100))


def _new_folder(results: str, space: str) -> RunFolder:
    root = path_of("--results", results)
    try:
        (root / space).mkdir(parents=True, exist_ok=True)
        for name in _names():
            path = root / space / name
            with suppress(FileExistsError):
                path.mkdir()
                break
        return RunFolder(path)
    except OSError as error:
        raise InputError(f"--results {root}: cannot be written ({error.strerror})") from None


def _new_in_bucket(results: str, space: str) -> RunFolder:
    """Two drivers that start in the same second both see an empty folder; the lease decides, and one is refused."""
    for name in _names():
        run = BucketFolder(results).join(space).join(name)
        if not run.objects():
            break
    return _held(run, RunBucket.make_copy)


def _held(run: BucketFolder, fill: Callable[[RunBucket], None]) -> RunFolder:
    """The working copy of a run in a bucket, locked and leased.

    Args:
        fill: makes the working copy.
    """
    bucket = RunBucket(run)
    try:
        fill(bucket)
        return RunFolder(bucket.copy, bucket)
    except OSError as error:
        bucket.close()
        raise InputError(f"{bucket.copy}: cannot be written ({error.strerror})") from None
    except InputError:
        bucket.close()
        raise


@dataclass(frozen=True)
class Reopened:
    """An existing run that this process has locked, to go on with it.

    Attributes:
        folder: to be closed. settings: those it was started with, for the place where it is now.
        record: its whole settings.yaml. started: the space and the trials' settings of its start, for `resolve`.
        notes: for its user.
    """

    folder: RunFolder
    settings: SweepSettings
    record: dict[str, Any]
    started: Started
    notes: tuple[str, ...]


def reopen_run(run: Path | str) -> Reopened:
    """Locks an existing run and reads what it was started with.

    Args:
        run: its folder; or its URI in a bucket, from which its working copy is brought up to date.

    Raises:
        InputError: not a run, damaged, not writable, or held by a running sweep; or its space is another one now.
    """
    folder, settings, record = _locked(run)
    try:
        started, notes = started_with(folder.path, record)
    except BaseException:
        folder.close()
        raise
    return Reopened(folder, settings, record, started, notes)


def _locked(run: Path | str) -> tuple[RunFolder, SweepSettings, dict[str, Any]]:
    if isinstance(run, Path):
        refuse_links(f"--resume {run}", run)
        if (place := place_of(run)) != str(run):
            raise InputError(f"--resume {run}: this is the working copy of a run in a bucket; expected {place}")
        return _opened(run)
    check_bucket("--resume", run)
    if BucketFolder(run, patient=False).read(RUN_SETTINGS) is None:  # a lease there would leave an object
        raise InputError(f"--resume {BucketFolder(run)}: not a run; expected a {RUN_SETTINGS} there")
    folder = _held(BucketFolder(run), RunBucket.fetch)
    try:
        settings, record = recorded_settings(folder.path)
    except InputError:
        folder.close()
        raise
    return folder, located_in_bucket(BucketFolder(run), settings), record


def _opened(path: Path) -> tuple[RunFolder, SweepSettings, dict[str, Any]]:
    settings, record = recorded_settings(path)
    try:
        return RunFolder(path), located(path, settings, record), record
    except OSError as error:
        raise InputError(f"--resume {path}: cannot be written ({error.strerror})") from None
