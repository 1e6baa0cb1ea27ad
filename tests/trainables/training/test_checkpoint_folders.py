"""Checkpoints are written completely or not at all, and a damaged one is noticed when it is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainables.training.checkpoint_folders import (
    CheckpointNotWritten,
    damage,
    drop_older,
    keep_checkpoint,
    newest_whole,
    sorted_checkpoints,
)


def writer(value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        torch.save({"step": value, "weights": torch.full((100,), value)}, folder / "state.pt")
        (folder / "settings.json").write_text("{}")

    return write


def kept(trial: Path, *steps: int) -> list[Path]:
    return [keep_checkpoint(trial, step, writer(float(step))) for step in steps]


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    folders = kept(tmp_path, 2, 4, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_000004", "checkpoint_000010"]
    assert newest_whole(tmp_path) == (folders[2], [])
    drop_older(tmp_path)
    assert sorted_checkpoints(tmp_path) == folders[2:]


@pytest.mark.parametrize("name", ["state.pt", "settings.json", "checksums.json"])
@pytest.mark.parametrize("change", [garble, lambda path: path.unlink(), lambda path: os.truncate(path, 1)])
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    before, newest = kept(tmp_path, 2, 4)
    change(newest / name)
    found, damaged = newest_whole(tmp_path)
    if name == "checksums.json" and not (newest / name).exists():  # as a whole one of version 0.1
        assert not damage(newest)
        return
    assert found == before
    assert len(damaged) == 1 and damaged[0].startswith("checkpoint_000004 is damaged (")


def test_a_garbled_state_of_version_0_1_is_noticed(tmp_path: Path) -> None:
    """It has no checksums of ours, but torch.load alone returns wrong weights."""
    (folder,) = kept(tmp_path, 2)
    (folder / "checksums.json").unlink()
    content = (folder / "state.pt").read_bytes()
    values = torch.full((100,), 2.0).numpy().tobytes()
    (folder / "state.pt").write_bytes(content.replace(values, bytes([1]) + values[1:]))
    torch.load(folder / "state.pt", weights_only=True)
    assert newest_whole(tmp_path)[0] is None


def test_a_failed_write_keeps_the_checkpoints_before_it(tmp_path: Path) -> None:
    (folder,) = kept(tmp_path, 2)

    def full(folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with pytest.raises(CheckpointNotWritten, match=r"checkpoint_000004: cannot be written .*PytorchStream.*are free"):
        keep_checkpoint(tmp_path, 4, full)
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint_000004.0123.partial"
    left.mkdir()
    (left / "state.pt").write_bytes(b"half")
    (folder,) = kept(tmp_path, 4)
    assert list(tmp_path.iterdir()) == [folder]


def test_order_does_not_depend_on_times(tmp_path: Path) -> None:
    first, second = kept(tmp_path / "run", 2, 10)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    os.utime(first / "state.pt", (4e9, 4e9))
    assert newest_whole(tmp_path / "run")[0] == second
    assert json.loads((second / "checksums.json").read_text())["step"] == 10
