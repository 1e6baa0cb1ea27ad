"""A source is listed once, although several parts of a plan and a preparation use it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeps.command_line import main
from tests.helpers.buckets import endpoint, upload
from trainables.common import locations
from trainables.data.__main__ import main as data
from trainables.images.sources.source import open_source
from trainables.settings.pairs import Split

__all__ = ["endpoint", "upload"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SMALL = ["--set", "pairs.train_pairs=8", "--set", "pairs.validation_pairs=2", "--set", "pairs.test_pairs=3"]


def photographs(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(12):
        path = root / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (80, 96, 3), np.uint8)).save(path)
    return root


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The folders below `tmp_path` that are listed, in order."""
    listed: list[str] = []
    scandir = os.scandir

    def noted(path: str = ".") -> object:
        if str(path).startswith(str(tmp_path / "photographs")):
            listed.append(os.path.relpath(path, tmp_path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    return listed


FOLDERS = ["photographs", "photographs", "photographs/a", "photographs/b"]
"""The root twice: once for subfolders, which may be the sides of pairs, once for images."""


@pytest.mark.parametrize("space", ["sinsr_loss_ratios", "latent_or_pixel"])
def test_plan_lists_a_folder_once(space: str, tmp_path: Path, looked: list[str]) -> None:
    source = str(photographs(tmp_path / "photographs"))
    flags = ["--space", space, "--data", source, "--perceptual", "none", "--results", str(tmp_path / "results")]
    assert main([*flags, *SMALL, "--dry-run"]) == 0
    assert sorted(looked) == FOLDERS


def test_preparation_lists_a_folder_once(tmp_path: Path, looked: list[str]) -> None:
    source = str(photographs(tmp_path / "photographs"))
    line = ["prepare", "--method", "pix2pix", "--data", source, "--store", str(tmp_path / "store"), "--cpus", "1"]
    assert data([*line, *SMALL]) == 0
    assert sorted(looked) == FOLDERS


def test_plan_lists_a_bucket_once(
    tmp_path: Path, upload: Callable[[Path, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    kind = locations.Location.kind

    def noted(place: locations.Location) -> object:
        asked.append(str(place))
        return kind(place)

    monkeypatch.setattr(locations.Location, "kind", noted)
    source = upload(photographs(tmp_path / "photographs"), "asked")
    flags = ["--space", "sinsr_loss_ratios", "--data", source, "--perceptual", "none"]
    assert main([*flags, "--results", str(tmp_path / "results"), *SMALL, "--dry-run"]) == 0
    assert asked.count("s3://photographs/asked") == 1


def test_opened_source_does_not_change(tmp_path: Path) -> None:
    """If photographs are added while a sweep starts, it still prepares the ones in its fingerprint."""
    root = photographs(tmp_path)
    source = open_source(str(root))
    before = [source.of_split(split).names for split in SPLITS]
    fingerprint = source.fingerprint
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(root / "a" / "new.png")
    assert [source.of_split(split).names for split in SPLITS] == before
    again = open_source(str(root))
    assert source.fingerprint == fingerprint != again.fingerprint
    names = [name for split in SPLITS for name in again.of_split(split).names]
    assert "a/new.png" in names and not source.paired
