"""What locks also works on a file system without locks, as NFS without its daemon and some FUSE mounts are."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.planning.run_folder import RunFolder
from trainables.common.errors import InputError
from trainables.common.locks import locked, take
from trainables.common.session_folder import session_folder
from trainables.data.prepare import prepare
from trainables.data.stores.inventory import remove, stores_below
from trainables.data.stores.shard_format import MANIFEST
from trainables.settings import TrialSettings, override

ERRORS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@pytest.fixture(params=ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_data_is_prepared_and_read_and_not_deleted(tiny: TrialSettings, tmp_path: Path) -> None:
    settings = override(tiny, {"method": "pix2pix"})
    root = tmp_path / "store"
    for _ in range(2):
        assert prepare(settings, root, {"target", "degraded"}).train_rows
    stores = stores_below(root)
    assert {remove(store).partition(",")[0] for store in stores} == {"its file system has no locks"}
    assert all((store.path / MANIFEST).exists() for store in stores)


@pytest.mark.usefixtures("no_locks")
def test_run_is_taken_by_one_process_at_a_time(tmp_path: Path) -> None:
    RunFolder(tmp_path).close()
    RunFolder(tmp_path)  # a driver that is killed leaves its name
    RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / ".lock").write_text(f"process {other.pid} on {socket.gethostname()}")
        with pytest.raises(InputError, match=rf"in use by a running sweep \(process {other.pid} .*delete .*\.lock"):
            RunFolder(tmp_path)
        other.communicate(b"\n")
    RunFolder(tmp_path)
    (tmp_path / ".lock").write_text("process 1 on another-machine")
    with pytest.raises(InputError, match="process 1 on another-machine"):
        RunFolder(tmp_path)


@pytest.mark.usefixtures("no_locks")
def test_folder_of_a_session_is_made_and_removed() -> None:
    with session_folder() as folder:
        assert folder.is_dir()
    assert not folder.exists()


def test_lock_is_held_by_one(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as alone, open(tmp_path / "lock") as again:
        assert alone and take(again.fileno()) is False
    with open(tmp_path / "lock") as again, open(tmp_path / "lock") as other:
        assert take(again.fileno(), shared=True) and take(other.fileno(), shared=True)


def test_other_errors_are_not_taken_for_missing_locks(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as file:
        number = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        take(number)
