"""A run whose results are in a bucket: its lease, its working copy on this machine, and the upload of what changes.

The driver works in a copy below the user's cache, `XDG_CACHE_HOME`. A thread uploads the files that have changed, the
record of the run (`events.jsonl`) first. Trials write their checkpoints and logs to the bucket themselves: see
`trainables.training.bucket_checkpoints` and `bucket_log`.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from sweeps.planning.lease import LEASE, Lease
from sweeps.planning.run_files import EVENTS, RUN_SETTINGS, refuse_links
from trainables.common.buckets import BucketFolder, check_bucket
from trainables.common.errors import InputError, one_line
from trainables.common.paths import is_uri, path_of, replace_folder, write_durably
from trainables.data.stores.roots import local_root
from trainables.pretrained.finished_trial import CHECKSUMS
from trainables.training.bucket_checkpoints import download_newest, drop_older_in
from trainables.training.pictures import PICTURES

RECORD_EVERY, EVERY = 0.5, 2.0  # seconds between two uploads of the record, and of all that has changed, at least
SHARE = 0.2  # of the time, at most, for each of them: a long run has large tables
_AT_ONCE = 4  # files
_PLACE, _FETCHED = ".bucket", ".fetched"  # in the working copy: the URI of its run; parts of checkpoints
_ALWAYS_FETCHED = (RUN_SETTINGS, "space.json", "warm_start.json")
_LOG = re.compile(r"trials/[^/]+/log(-\d+)?\.txt")  # trials write them: see `trainables.training.bucket_log`
_TRIALS, _UNKNOWN, _CHECKPOINT = "trials", "unknown_trials", "checkpoint_"

Stamp = tuple[int, int]  # bytes, time of the last change in ns


def working_copy(run: BucketFolder) -> Path:
    """The folder of a run on this machine: <cache>/restoration-sweeps/<hash of the results' URI>/<space>/<run>."""
    space = run.parent
    return local_root(space.parent.uri) / space.name / run.name


def place_of(folder: Path) -> str:
    """Where a run is, given its folder or working copy: the URI in a bucket, or the folder itself."""
    try:
        return (folder / _PLACE).read_text(encoding="utf-8").strip() or str(folder)
    except (OSError, ValueError):
        return str(folder)


def run_to_read(name: str, text: str) -> Path:
    """A run that is only read, given its folder or URI: one in a bucket is copied to the user's cache, without its
    checkpoints, and without its lease.

    Args:
        name: of the flag or argument, for messages.

    Raises:
        InputError: not a path, a run with links in it, or a bucket that cannot be read or has no run there.
    """
    if not is_uri(text):
        path = path_of(name, text)
        refuse_links(f"{name} {path}", path)
        return path
    check_bucket(name, text)
    run = BucketFolder(text, patient=False)
    copy = working_copy(run)
    copy = copy.parents[2] / "read" / Path(*copy.parts[-3:])  # a driver may work in the other one
    objects = _own_files(run.objects())
    if RUN_SETTINGS not in objects:
        raise InputError(f"{name} {run}: not a run; expected a {RUN_SETTINGS} there")
    new = copy.with_name(f".{copy.name}.{os.getpid()}")  # another process may read the copy that is there
    shutil.rmtree(new, ignore_errors=True)
    _download(run, new, objects)
    (new / _PLACE).write_text(text, encoding="utf-8")
    replace_folder(new, copy)
    return copy


class RunBucket:
    """A run in a bucket that this process holds until `close`.

    Args:
        run: its folder.

    Attributes:
        copy: its working copy.

    Raises:
        InputError: another driver has it; or from every method, the bucket cannot be reached.
    """

    def __init__(self, run: BucketFolder) -> None:
        self.run, self.copy = run, working_copy(run)
        self._lease = Lease(run)
        self._uploaded: dict[str, Stamp] = {}
        self._ended: list[str] = []
        self._one = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._say: Callable[[str], None] = lambda line: None

    def make_copy(self) -> None:
        """Makes an empty working copy for a new run."""
        shutil.rmtree(self.copy, ignore_errors=True)
        self._mark()

    def fetch(self) -> None:
        """Brings the working copy up to date with the bucket.

        A copy that is ahead of the bucket stays: its driver was killed before it uploaded the last events.
        """
        objects = [name for name in _own_files(self.run.objects()) if not _LOG.fullmatch(name)]
        local = self.copy / EVENTS
        record = self.run.read(EVENTS) or b""
        if place_of(self.copy) != self.run.uri or not local.is_file() or not local.read_bytes().startswith(record):
            shutil.rmtree(self.copy, ignore_errors=True)
        missing = [name for name in objects if name in _ALWAYS_FETCHED or not (self.copy / name).exists()]
        _download(self.run, self.copy, missing)
        if len(missing) == len(objects):
            self._uploaded = _stamps(self.copy)
        self._mark()

    def _mark(self) -> None:
        try:
            self.copy.mkdir(parents=True, exist_ok=True)
            write_durably(self.copy / _PLACE, self.run.uri)
        except OSError as error:
            raise InputError(
                f"{self.copy}: cannot be written ({error.strerror}); expected a cache folder for the working copy of "
                f"{self.run}; XDG_CACHE_HOME sets it"
            ) from None

    def start(self, stop: Callable[[str], None], say: Callable[[str], None]) -> None:
        """Uploads what changes from now on, in a thread.

        Args:
            stop: ends the sweep for a reason: the run was taken over. say: writes a line to the log.
        """
        self._say = say
        self._lease.when_lost(stop)
        self._thread = threading.Thread(target=self._keep_uploading, name="upload", daemon=True)
        self._thread.start()

    def trial_ended(self, id: str) -> None:
        """Keeps only the newest checkpoint of a trial that has ended, and copies its pictures for the report; soon."""
        self._ended.append(id)

    def trials_ended(self, ids: Iterable[str]) -> None:
        """The same for those whose pictures are not here: they ended on another machine."""
        folders = {id: self.copy / _TRIALS / id for id in ids}
        self._ended += [id for id, folder in folders.items() if not any(folder.glob(f"{_CHECKPOINT}*"))]

    def set_aside(self, known: Callable[[str], bool]) -> list[str]:
        """Moves the checkpoints and logs of trials that are in no record to `unknown_trials/`.

        Returns:
            The ids of those with checkpoints.

        A driver was killed before it uploaded the record of their start. A trial of the same id may have other
        parameters, and must not continue from them.
        """
        aside = [
            name
            for name in self.run.objects()
            if (_is_checkpoint(name) or _LOG.fullmatch(name)) and not known(name.split("/")[1])
        ]
        for name in aside:
            self.run.move(name, f"{_UNKNOWN}/{name.partition('/')[2]}")
        return sorted({name.split("/")[1] for name in aside if _is_checkpoint(name)})

    def with_checkpoints(self) -> set[str]:
        """The ids of trials that have a complete one."""
        names = self.run.objects()
        return {name.split("/")[1] for name in names if _is_checkpoint(name) and name.endswith(f"/{CHECKSUMS}")}

    def newest(self, id: str, wanted: Iterable[str]) -> tuple[Path | None, list[str]]:
        """Some files of a trial's newest checkpoint, until `close`: see `download_newest`."""
        return download_newest(self.trial(id), self.copy / _FETCHED / id, frozenset(wanted))

    def trial(self, id: str) -> BucketFolder:
        return trial_folder(self.run, id)

    def sync(self) -> None:
        """Uploads everything that has changed, now."""
        with self._one:
            self._check()
            while self._ended:
                self._tidy(self._ended[0])
                self._ended.pop(0)
            self._upload_record()
            now = _stamps(self.copy)
            changed = [name for name, stamp in now.items() if name != EVENTS and self._uploaded.get(name) != stamp]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for last in (False, True):
                    names = [name for name in changed if _says_all_is_there(name) == last]
                    list(pool.map(lambda name: self._upload(name, now[name]), names))
            for name in self._uploaded.keys() - now.keys():
                self.run.delete([name])
                del self._uploaded[name]

    def close(self) -> None:
        """Uploads what is left and gives the run back."""
        self._done.set()
        if self._thread:
            self._thread.join()
        shutil.rmtree(self.copy / _FETCHED, ignore_errors=True)
        if self._lease.lost:
            return
        if self._thread:
            try:
                self.sync()
            except (InputError, OSError) as error:
                self._say(f"not all is uploaded ({one_line(error)}); --resume on this machine uploads the rest")
        self._lease.release()

    def _check(self) -> None:
        if self._lease.lost:
            raise InputError(self._lease.lost)
        if place_of(self.copy) != self.run.uri:  # or all would be deleted from the bucket too
            raise InputError(f"{self.copy}: the working copy of {self.run} was removed")

    def _upload_record(self) -> None:
        with suppress(FileNotFoundError):  # no trial has started yet
            stat = (self.copy / EVENTS).stat()
            if self._uploaded.get(EVENTS) != (stamp := (stat.st_size, stat.st_mtime_ns)):
                self._upload(EVENTS, stamp)

    def _upload(self, name: str, stamp: Stamp) -> None:
        with suppress(FileNotFoundError):  # removed or renamed meanwhile
            self.run.upload(self.copy / name, name)
            self._uploaded[name] = stamp

    def _tidy(self, id: str) -> None:
        drop_older_in(self.trial(id))
        found, _ = self.newest(id, PICTURES.values())
        if found is None:
            return
        for folder in (self.copy / _TRIALS / id).glob(f"{_CHECKPOINT}*"):
            shutil.rmtree(folder, ignore_errors=True)
        target = self.copy / _TRIALS / id / found.name
        target.parent.mkdir(parents=True, exist_ok=True)
        found.rename(target)
        shutil.rmtree(found.parent, ignore_errors=True)

    def _keep_uploading(self) -> None:
        due, pause, failing = 0.0, RECORD_EVERY, False
        while not self._done.wait(pause):
            began = time.monotonic()
            everything = began >= due
            try:
                self.sync() if everything else self._sync_record()
                if failing:
                    self._say("the bucket answers again")
                failing = False
            except (InputError, OSError) as error:
                if self._lease.lost:
                    return
                if not failing:
                    self._say(f"{one_line(error)}; tried again")
                failing = True
            ended = time.monotonic()
            rest = (ended - began) * (1 / SHARE - 1)
            if everything:
                due, pause = ended + max(EVERY, rest), RECORD_EVERY
            else:
                pause = max(RECORD_EVERY, rest)

    def _sync_record(self) -> None:
        with self._one:
            self._check()
            self._upload_record()


def trial_folder(run: BucketFolder, id: str) -> BucketFolder:
    """The folder of a trial, with its checkpoints."""
    return run.join(_TRIALS).join(id)


def fetch_trial(run: str, checkpoint: str) -> Path:
    """The newest whole checkpoint of a trial in a bucket, copied to the user's cache.

    Args:
        run: URI of its run. checkpoint: its name in the leaderboard, trials/<id>/checkpoint_<step>.

    Raises:
        InputError: there is none.
    """
    id = checkpoint.split("/")[1]
    trial = trial_folder(BucketFolder(run), id)
    found, damaged = download_newest(trial, local_root(trial.uri))
    if found is None:
        raise InputError(f"{trial}: has no whole checkpoint ({'; '.join(damaged) or 'none is there'})")
    return found


def _says_all_is_there(name: str) -> bool:
    """Whether a file of a run tells its reader that others are there: a trial's end in TensorBoard, and what makes a
    folder a run."""
    return name == RUN_SETTINGS or name.endswith(".hparams")


def _download(run: BucketFolder, copy: Path, names: Iterable[str]) -> None:
    def download(name: str) -> None:
        with suppress(FileNotFoundError):  # deleted meanwhile
            run.download(name, copy / name)

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(download, names))
    except OSError as error:
        raise InputError(f"{copy}: cannot be written ({error.strerror or one_line(error)})") from None


def _stamps(copy: Path) -> dict[str, Stamp]:
    """Name -> stamp of the files of a working copy that belong into the bucket."""
    found = {}
    for folder, subfolders, files in os.walk(copy):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in files:
            path = Path(folder, file)
            name = path.relative_to(copy).as_posix()
            with suppress(OSError):  # removed meanwhile
                stat = path.stat()
                found[name] = stat.st_size, stat.st_mtime_ns
    return {name: found[name] for name in _own_files(found) if not _LOG.fullmatch(name)}


def _own_files(names: Iterable[str]) -> list[str]:
    """Those that the driver writes: no checkpoints, no lease, no hidden files, and none outside of the folder."""
    return sorted(
        name
        for name in names
        if name != LEASE
        and not name.startswith((f"{_UNKNOWN}/", "clock-"))
        and not _is_checkpoint(name)
        and all(part and not part.startswith(".") for part in name.split("/"))
    )


def _is_checkpoint(name: str) -> bool:
    """Whether it is a file of a checkpoint: trials/<id>/checkpoint_<step>/<file>."""
    parts = name.split("/")
    return len(parts) == 4 and parts[0] == _TRIALS and parts[2].startswith(_CHECKPOINT)
