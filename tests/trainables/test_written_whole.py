"""Files and folders that are the old ones or the new ones, whatever ends their writer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainables.common.paths import replace_file, write_durably


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
