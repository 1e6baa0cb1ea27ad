"""The log of a trial: what its process prints, for how long, and how much of it is kept."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from trainables.training.trial_log import LIMIT, kept_output

PRINTING = """
import logging, sys, warnings
from pathlib import Path
from trainables.training.trial_log import kept_output

library = logging.getLogger("a-library")
library.addHandler(logging.StreamHandler())  # as diffusers and transformers do when they are imported
print("before")
for word in ("first", "second"):  # the trial is started again
    with kept_output(Path(sys.argv[1])):
        print(word)
        print(word, "error", file=sys.stderr)
        library.warning("%s of a logger", word)
        warnings.warn("a tiny batch")
print("after")
library.warning("after, of a logger")
"""


def test_log_has_what_a_trial_prints_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "t000"
    done = subprocess.run(
        [sys.executable, "-c", PRINTING, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    starts = [line for line in lines if line.startswith("---- ")]
    assert len(starts) == 2 and all(f"on host {socket.gethostname()}, process " in line for line in starts)
    assert [line for line in lines if line not in starts] == [
        *("first", "first error", "first of a logger", "<string>:14: UserWarning: a tiny batch"),
        *("second", "second error", "second of a logger", "<string>:14: UserWarning: a tiny batch"),
    ]
    assert done.stdout.split() == ["before", "first", "second", "after"]
    assert "second error" in done.stderr and done.stderr.endswith("after, of a logger\n")


def test_log_has_the_traceback_and_each_worker_its_own(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such tensor"), kept_output(tmp_path, rank=1):
        raise RuntimeError("no such tensor")
    assert not (tmp_path / "log.txt").exists()
    text = (tmp_path / "log-1.txt").read_text(encoding="utf-8")
    assert "Traceback" in text and text.endswith("RuntimeError: no such tensor\n")


def test_log_keeps_the_newest_mebibyte(tmp_path: Path) -> None:
    lines = 3 * LIMIT // 100
    with kept_output(tmp_path):
        for number in range(lines):
            print(f"{number:<98}")
        print("x" * (2 * LIMIT))
        print("the last line")
    (file,) = tmp_path.iterdir()
    text = file.read_text(encoding="utf-8")
    assert LIMIT // 4 < len(text) <= LIMIT and text.startswith("---- earlier lines were removed\n")
    assert text.endswith("x\nthe last line\n")


def test_log_that_cannot_be_written_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").symlink_to(tmp_path / "elsewhere")
    with kept_output(tmp_path):
        print("goes on")
    (tmp_path / "file").touch()
    with kept_output(tmp_path / "file" / "t000"):
        print("goes on")
    assert not (tmp_path / "elsewhere").exists()
    assert capsys.readouterr().out == "goes on\n" * 2
