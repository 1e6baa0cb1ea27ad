"""The folder of one run: its name, its lock and its settings.yaml. Its results may be in a bucket."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from sweeps.planning.own_spaces import keep_space, register_kept_space
from sweeps.planning.question import Question, absolute_paths
from sweeps.planning.run_bucket import RunBucket, place_of
from sweeps.planning.run_files import LOG, RUN_SETTINGS
from sweeps.planning.settings import BASE_METRICS, SweepSettings
from trainables.common.buckets import BucketFolder, check_bucket
from trainables.common.errors import InputError, one_line
from trainables.common.locks import take
from trainables.common.paths import ROOT, is_checkout, is_uri, replace_file
from trainables.data.stores.roots import store_root
from trainables.metrics.names import METRICS, PYIQA, register
from trainables.settings import flatten, override
from trainables.training.checkpoint_folders import drop_older, newest_whole

__all__ = ["LOG", "RUN_SETTINGS"]
GOING_ON = ("trials", "confirm_steps", "time_budget", "budget_usd", "price_per_hour")
"""Settings that a resumed run may change."""
_LOCK = ".lock"
_PYIQA = "pyiqa"
_VERSIONS = ("torch", "ray", "optuna", "diffusers", "torchmetrics", "pyarrow")


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
        self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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
        changes = {name: getattr(settings, name) for name in GOING_ON}
        changed = {name: value for name, value in changes.items() if record["command"].get(name) != value}
        if not changed:
            return
        earlier = [*record.get("continued", []), {"at": time.strftime("%Y-%m-%d %H:%M:%S"), **changed}]
        command = {**record["command"], **changes}
        _write(self.path, {**record, "command": command, "trials": trials, "continued": earlier})
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
    question: Question, metrics: tuple[str, ...], objective: str, stores: Mapping[str, str], store: str = ""
) -> RunFolder:
    """A new folder results/<space>/<time>/, locked, with its settings.yaml. In a bucket, it is there when this returns.

    Args:
        stores: see `Plan.stores`. store: their root.

    Raises:
        InputError: the results folder or bucket cannot be written.
    """
    results = question.settings.results
    folder = (_new_in_bucket if is_uri(results) else _new_folder)(results, question.space.name)
    record = {
        "command": _command(question.settings),
        "question": question.space.question,
        "objective": objective,
        "metrics": list(metrics),
        **_of_pyiqa(metrics),
        "trials": question.trials,
        "trial": _plain(flatten(question.trial)),
        "stores": dict(stores),
        "store": store,
        "versions": _versions(),
        "commit": _commit(),
    }
    _write(folder.path, record)
    keep_space(folder.path, question.space)
    try:
        if folder.bucket:
            folder.bucket.sync()
    except InputError:
        folder.close()
        raise
    return folder


def _names() -> Iterator[str]:
    """Names for a new run: the time, then with a number."""
    name = time.strftime("%Y%m%d-%H%M%S")
    yield from (f"{name}-{attempt}" if attempt else name for attempt in range(100))


def _new_folder(results: str, space: str) -> RunFolder:
    root = Path(results).expanduser()
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


def _of_pyiqa(metrics: tuple[str, ...]) -> dict[str, Any]:
    """Direction and kind of the metrics of pyiqa, so that the run can be read where pyiqa is not installed."""
    named = [METRICS[name] for name in metrics if name.startswith(PYIQA)]
    return {_PYIQA: {metric.name: [metric.direction, metric.compared_with] for metric in named}} if named else {}


def register_recorded(record: Mapping[str, Any]) -> None:
    """Adds the metrics of pyiqa that a run names in its settings.yaml to the known metrics.

    Raises:
        ValueError: they are not recorded as `create_run` does.
    """
    for name, facts in _mapping(_PYIQA, record.get(_PYIQA, {})).items():
        match facts:
            case ["max" | "min" as direction, "target" | "nothing" as compared_with] if name.startswith(PYIQA):
                register(name, direction, compared_with)
            case _:
                raise ValueError(f"{_PYIQA} holds {one_line(repr({name: facts}))}; expected directions of {PYIQA}*")


def _write(run: Path, record: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(_plain(record), sort_keys=False)
    replace_file(run / RUN_SETTINGS, lambda new: new.write_text(text, encoding="utf-8"))


def open_run(run: Path | str) -> tuple[RunFolder, SweepSettings, dict[str, Any]]:
    """An existing run, locked: its folder, the settings it was started with, and its whole settings.yaml.

    Args:
        run: its folder; or its URI in a bucket, from which its working copy is brought up to date.

    Raises:
        InputError: not a run, damaged, not writable, or held by a running sweep.
    """
    if isinstance(run, Path):
        if (place := place_of(run)) != str(run):
            raise InputError(f"--resume {run}: this is the working copy of a run in a bucket; expected {place}")
        return _opened(run)
    check_bucket("--resume", run)
    if BucketFolder(run, patient=False).read(RUN_SETTINGS) is None:  # a lease there would leave an object
        raise InputError(f"--resume {BucketFolder(run)}: not a run; expected a {RUN_SETTINGS} there")
    folder = _held(BucketFolder(run), RunBucket.fetch)
    try:
        settings, record = _recorded(folder.path)
    except InputError:
        folder.close()
        raise
    return folder, _located_in_bucket(BucketFolder(run), settings), record


def _opened(path: Path) -> tuple[RunFolder, SweepSettings, dict[str, Any]]:
    settings, record = _recorded(path)
    try:
        return RunFolder(path), located(path, settings, record), record
    except OSError as error:
        raise InputError(f"--resume {path}: cannot be written ({error.strerror})") from None


def _recorded(path: Path) -> tuple[SweepSettings, dict[str, Any]]:
    """The settings in a run's folder, and its whole settings.yaml."""
    try:
        settings, record = _read((path / RUN_SETTINGS).read_bytes())
    except OSError as error:
        raise InputError(
            f"--resume {path}: not the folder of a run ({error.strerror}); expected one with a {RUN_SETTINGS}"
        ) from None
    except (
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # from the settings, and from YAML's dates and numbers
        raise InputError(f"--resume {path / RUN_SETTINGS}: {one_line(error)}") from None
    register_kept_space(path)
    return settings, record


def _command(settings: SweepSettings) -> dict[str, Any]:
    """The settings of the command line, with absolute paths of its inputs: it may be resumed from another folder."""
    pairs = [[name, str(absolute_paths({name: value}).get(name, value))] for name, value in settings.set]
    inputs = {
        "data": "data.source",
        "data_input": "data.input",
        "data_target": "data.source",
        "checkpoint": "checkpoint",
    }
    paths = {name: getattr(settings, name) for name in inputs}
    paths = {name: absolute_paths({inputs[name]: path}).get(inputs[name], path) for name, path in paths.items()}
    store = store_root(settings.store) if settings.store else ""
    return _plain(asdict(settings)) | {"set": pairs, **paths, "store": store}


def located(run: Path, settings: SweepSettings, record: Mapping[str, Any]) -> SweepSettings:
    """The settings of a run for the place where its folder is now: it may have been moved or copied.

    The prepared data is looked for where the command line said, next to the run, and where it was at the start. The
    first place that has all of it is used.
    """
    parents = run.absolute().parents
    beside = str((parents[1] if len(parents) > 1 and parents[0].name == settings.space else parents[0]) / "store")
    at_start = str(record.get("store") or Path(settings.results) / "store")
    places = [settings.store] if settings.store else [beside, at_start]
    complete = (
        place
        for place in (*places, beside, at_start)
        if not is_uri(place) and all((Path(place) / name).is_dir() for name in record["stores"].values())
    )
    store = settings.store if is_uri(settings.store) else next(complete, places[0])
    return replace(settings, results=str(parents[0]), store=store)


def _located_in_bucket(run: BucketFolder, settings: SweepSettings) -> SweepSettings:
    """The settings of a run for the bucket where it is now. Its prepared data is next to it, unless `--store` named
    another place."""
    return replace(settings, results=run.parent.parent.uri)


@dataclass(frozen=True)
class _Record:
    """The part of settings.yaml that `override` checks when a run is resumed."""

    command: SweepSettings
    metrics: tuple[str, ...] = ()


def _read(content: bytes) -> tuple[SweepSettings, dict[str, Any]]:
    """The settings in a settings.yaml, and its whole content; raises ValueError or a YAML error if it is invalid."""
    record = _mapping("its content", yaml.safe_load(content))
    command = {"space": None, "set": [], **_mapping("command", record.get("command"))}
    given = _pairs("command.set", command.pop("set"))
    if "confirm" not in command:  # a run of version 0.1, which had neither a confirmation nor test photographs
        command["confirm"], given = 0, (*given, ("data.test_share", "0"))
    command |= _budget(record, command, dict(given))
    settings = SweepSettings(space="", set=given)
    stores = dict(_pairs("stores", [[*each] for each in _mapping("stores", record.get("stores")).items()]))
    changes = {f"command.{name}": value for name, value in command.items()}
    read = override(_Record(settings), {**changes, "metrics": record.get("metrics")})
    register_recorded(record)
    known = [name for name, metric in METRICS.items() if metric.compared_with != "other seeds"]
    if not {BASE_METRICS[0]} <= set(read.metrics) <= set(known):
        raise ValueError(f"metrics={record['metrics']}: expected {BASE_METRICS[0]}, and others of {', '.join(known)}")
    return read.command, {**record, "metrics": list(read.metrics), "stores": stores}


def _budget(record: dict[str, Any], command: dict[str, Any], given: Mapping[str, str]) -> dict[str, int]:
    """The trials and steps that the run started with, where its command left them to a preset: presets change."""
    trial = record.get("trial")
    steps = trial.get("training.max_steps") if isinstance(trial, dict) else None
    recorded = {"trials": record.get("trials"), "max_steps": None if "training.max_steps" in given else steps}
    return {
        name: value
        for name, value in recorded.items()
        if type(value) is int and value > 0 and command.get(name, 0) == 0
    }


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "missing" if value is None else one_line(repr(value))
        raise ValueError(f"{name} is {found}; expected names with their values")
    return {str(key): each for key, each in value.items()}


def _pairs(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    for pair in value if isinstance(value, list) else [value]:
        match pair:
            case [str(), str()]:
                continue
        raise ValueError(f"{name} holds {one_line(repr(pair))}; expected pairs of texts")
    return tuple((one, other) for one, other in value)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VERSIONS}}


def _commit() -> str:
    """The commit of the code, with + if files were changed; empty outside a git checkout."""
    if not is_checkout():  # the package may be installed inside another project's checkout
        return ""
    try:
        ask = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
