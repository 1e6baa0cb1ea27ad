"""Files and folders that are the old ones or the new ones, whatever ends their writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from trainables.common import paths
from trainables.common.paths import replace_file, replace_folder, write_durably


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss cannot be had here, so the order of the system calls is compared."""
    calls: list[tuple[str, str]] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            file = args[-1] if name == "replace" else os.readlink(f"/proc/self/fd/{args[0]}")
            calls.append((name, Path(file).name))
            return real(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    file = tmp_path / "settings.yaml"
    for text in ("first", "second"):
        calls.clear()
        write_durably(file, text)
        assert file.read_text(encoding="utf-8") == text
        assert calls == [("fsync", ".settings.yaml.tmp"), ("replace", file.name), ("fsync", tmp_path.name)]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_durably(tmp_path / "settings.yaml", "old")

    def fails(new: Path) -> None:
        new.write_text("ne", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "settings.yaml", fails)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["old"]


REPLACES_FOREVER = """
import sys
from itertools import count
from pathlib import Path
from trainables.common.paths import replace_folder
best, working = Path(sys.argv[1], "best"), Path(sys.argv[1], ".best")
for number in count():
    working.mkdir()
    for name in ("weights", "settings"):
        (working / name).write_text(str(number), encoding="utf-8")
    replace_folder(working, best)
    if number == 20:
        print("started", flush=True)
"""


def test_a_killed_process_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", REPLACES_FOREVER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "started\n"
            end, seen = time.monotonic() + 0.5, 0
            while time.monotonic() < end:
                assert (tmp_path / "best").is_dir()  # a kill at any time finds it there
                seen += 1
        finally:
            process.send_signal(signal.SIGKILL)
    assert seen > 100
    weights, settings = ((tmp_path / "best" / name).read_text(encoding="utf-8") for name in ("weights", "settings"))
    assert weights == settings and int(weights) >= 20


@pytest.mark.parametrize("swaps", [True, False])
def test_an_old_folder_is_replaced_as_a_whole(tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a file system that cannot swap two folders."""
    if not swaps:
        monkeypatch.setattr(paths, "_swapped", lambda one, other: False)
    (tmp_path / f".best.old.killed{paths.PARTIAL}").mkdir()
    for content in ("old", "new"):
        (tmp_path / ".best").mkdir()
        (tmp_path / ".best" / content).touch()
        replace_folder(tmp_path / ".best", tmp_path / "best")
        assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("best"), Path("best", content)]
