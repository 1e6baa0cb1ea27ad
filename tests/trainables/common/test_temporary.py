"""`TMPDIR` that is full or cannot be written ends in one line that names it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from trainables.common import temporary
from trainables.common.command import ExitStatus, command_flags, run_command
from trainables.common.errors import CannotRun, InputError
from trainables.common.temporary import full_temporary_named, temporary_folder

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["missing", "a file", "no file system for files"])
def test_an_unusable_folder_is_named(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path("/proc") if place.startswith("no ") else tmp_path / "temporary"
    if place == "a file":
        root.write_text("", encoding="utf-8")
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    match = rf"^TMPDIR {root}: cannot be written \(.+\); expected .*free space$"
    with pytest.raises(CannotRun, match=match), temporary_folder():
        pass


def test_python_finds_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where all of them are full."""

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/full', '/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("TMPDIR", "/full")
    match = r"^TMPDIR /full: cannot be written \(No usable temporary directory"
    with pytest.raises(CannotRun, match=match), temporary_folder():
        pass


def test_a_killed_process_leaves_a_folder_that_the_next_one_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = "import time; from trainables.common.temporary import temporary_folder as new\n"
    command += "with new() as folder: (folder / 'log').touch(); print(folder, flush=True); time.sleep(600)"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout
        its = Path(other.stdout.readline().strip())
        os.utime(its, (0, 0))
        with temporary_folder():
            assert its.exists()  # in use, however old
        other.kill()
    with temporary_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


def test_error_that_names_a_file_in_it_is_about_it() -> None:
    """Here the disk has room, as with a quota."""
    full = os.strerror(errno.EDQUOT)
    with pytest.raises(CannotRun, match=rf"^TMPDIR .*: cannot be written \({full}\)"), temporary_folder() as folder:
        raise InputError(f"{folder}/shard: cannot be written ({full}); existing files were kept")
    assert not folder.exists()


@pytest.mark.parametrize("folder", [None, Path("/tmp/other")])
def test_other_errors_stay(folder: Path | None) -> None:
    """Also one of a disk that is full, while `TMPDIR` has room."""
    assert shutil.disk_usage(tempfile.gettempdir()).free > temporary._NO_ROOM
    for error in (NO_SPACE, RuntimeError("a lost connection")):
        with pytest.raises(type(error), match=re.escape(str(error))), full_temporary_named(folder):
            raise error


def test_messages_about_another_disk_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_NO_ROOM", 2**60)
    message = InputError(f"/results/plan: cannot be written ({NO_SPACE.strerror})")
    with pytest.raises(InputError, match=r"^/results/plan"), temporary_folder():
        raise message


def test_a_command_line_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Importing torch makes a folder there."""
    monkeypatch.setattr(temporary, "_NO_ROOM", 2**60)

    def work(flags: object) -> int:
        raise NO_SPACE

    assert run_command(command_flags("restore", ""), [], work, "") == ExitStatus.FAILED
    assert capsys.readouterr().err.startswith(f"restore: error: TMPDIR {tempfile.gettempdir()}: cannot be written (")


def test_errors_of_compilers_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch raises them: an error of its own, without the cause."""
    monkeypatch.setattr(temporary, "_NO_ROOM", 2**60)

    def compile_nothing() -> None:
        try:
            raise NO_SPACE
        except OSError:
            raise RuntimeError("backend failed") from None

    with pytest.raises(CannotRun, match=r"^TMPDIR .*No space left on device"), full_temporary_named():
        compile_nothing()
    with pytest.raises(CannotRun, match="No space left on device"), full_temporary_named():
        raise RuntimeError("CppCompileError: fatal error: error writing to /tmp/x.s: No space left on device")


def test_an_error_that_is_its_own_cause_is_passed_on() -> None:
    """Ray raises such errors."""

    def fail() -> None:
        error = RuntimeError("the dashboard does not start")
        raise error from error

    with pytest.raises(RuntimeError, match="the dashboard"), full_temporary_named():
        fail()
