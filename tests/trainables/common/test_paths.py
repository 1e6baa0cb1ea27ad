"""Names that are not ASCII, or not even UTF-8, on any terminal."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweeps.recording.progress import log_to, logger
from tests.helpers.paths import ROOT
from trainables.common.errors import CannotRun, InputError
from trainables.common.paths import path_of
from trainables.common.session_folder import temporary_root
from trainables.common.temporary import temporary_folder

NAME = os.fsdecode("日é".encode() + b"\xff")
SAYS = "from trainables.common.output import keep_output_open as keep; import sys; keep(); print(sys.argv[1])"
IN_ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
WITHOUT_UTF8 = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
IN_UTF8 = {"LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize("locale", [IN_ASCII, WITHOUT_UTF8, IN_UTF8], ids=["ascii", "posix", "utf-8"])
@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_every_name_can_be_printed(locale: dict[str, str], flags: list[str]) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    command = [sys.executable, *flags, "-c", SAYS, os.fsencode(NAME)]
    ended = subprocess.run(command, cwd=ROOT, env={**plain, **locale}, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.decode().rstrip().endswith(r"\udcff")
    assert ("日é".encode() in ended.stdout) == (locale is IN_UTF8)


def test_log_holds_every_name(tmp_path: Path) -> None:
    file = log_to(tmp_path / "sweep.log")
    try:
        # To the file alone: pytest's processes exchange what other handlers keep, as UTF-8.
        file.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, "photograph %s", (NAME,), None))
    finally:
        logger.removeHandler(file)
        file.close()
    assert isinstance(file, logging.FileHandler)
    assert (tmp_path / "sweep.log").read_bytes().endswith("photograph 日é\\udcff\n".encode())


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow would raise where it is written."""
    assert path_of("INPUT", str(tmp_path / NAME), any_bytes=True) == tmp_path / NAME
    with pytest.raises(InputError, match=r"^--store .*: .* is not UTF-8; rename it, or choose another place$"):
        path_of("--store", str(tmp_path / NAME))
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path / NAME)
    with pytest.raises(InputError, match=r"^--results results: .* is not UTF-8"):
        path_of("--results", "results")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / NAME))
    monkeypatch.setenv("TMPDIR", str(tmp_path / NAME))
    with pytest.raises(CannotRun, match=r"^TMPDIR .*: not UTF-8"), temporary_folder():
        pass
    with pytest.raises(InputError, match=r"^TMPDIR .*: not UTF-8"):
        temporary_root()
    assert not list((tmp_path / NAME).iterdir())


def test_a_working_directory_that_was_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match=r"^--results results: not a valid path \(No such file or directory\)"):
        path_of("--results", "results")
