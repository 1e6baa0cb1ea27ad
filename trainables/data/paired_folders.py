"""Paired folders: degraded photographs in one subfolder, their targets under the same names in another.

Pairs are split as photographs are, by the hash of the name that both sides share, and read when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from trainables.data.photographs import (
    Entry,
    PhotographFolder,
    Split,
    image_files,
    large_enough,
    paired_subfolders,
    part_of,
    scan,
)
from trainables.errors import InputError


class MatchedPhotograph(NamedTuple):
    """A photograph and its target, RGB. `degraded`: uint8 (H, W, 3). `target`: uint8 (H * scale, W * scale, 3)."""

    name: str
    degraded: np.ndarray
    target: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """The target, under the name a `Photograph` has for it: crops are chosen there."""
        return self.target


class PairFolder(Sequence[MatchedPhotograph]):
    """Matched photographs on disk, decoded on access; the last 256 MB of pixels of either side stay in memory."""

    def __init__(self, degraded: PhotographFolder, targets: PhotographFolder) -> None:
        self._degraded, self._targets = degraded, targets

    @property
    def names(self) -> list[str]:
        """Relative paths without the extension, in which the sides may differ."""
        return self._targets.names

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every target, known without decoding it."""
        return self._targets.sizes

    @property
    def skipped(self) -> dict[str, str]:
        """Name -> reason for every pair that was left out; reading adds those it finds broken."""
        return self._targets.skipped | self._degraded.skipped

    def __len__(self) -> int:
        return len(self._targets)

    @overload
    def __getitem__(self, index: int) -> MatchedPhotograph: ...
    @overload
    def __getitem__(self, index: slice) -> PairFolder: ...
    def __getitem__(self, index: int | slice) -> MatchedPhotograph | PairFolder:
        """Raises `InputError` naming the file when the pixels of either side cannot be read."""
        if isinstance(index, slice):
            return PairFolder(self._degraded[index], self._targets[index])
        target = self._targets[index]
        return MatchedPhotograph(target.name, self._degraded[index].pixels, target.pixels)


def is_paired(source: str) -> bool:
    """Whether `source` is a folder of pairs: `input/` with `target/`, or `captured/` with `original/`, in any case.

    Raises:
        InputError: no such folder, or it holds half of a pair of such subfolders, or more than one pair.
    """
    return paired_subfolders(source) is not None


def load_pairs(source: str, split: Split, min_size: int, scale: int) -> PairFolder:
    """The pairs of one split.

    Args:
        source: a folder for which `is_paired` holds. Both subfolders are searched as `load_photographs` searches a
            folder. Partners have the same relative path; their extensions may differ.
        split: `"train"` or `"validation"`; about one pair in ten validates, by the hash of its name.
        min_size: shorter side a target needs, in pixels. Pairs with smaller ones are skipped.
        scale: target side / degraded side, exactly, after EXIF rotation.

    A pair of which one side cannot be read is skipped, as `load_photographs` skips a photograph, with the same check:
    everything is decoded once here when a subfolder has up to 200 files, headers only when it has more.

    Raises:
        InputError: not a folder of pairs; photographs without partner, with two, or with one whose name differs in
            case; partners whose sizes do not fit; and as `load_photographs`.
    """
    folders = paired_subfolders(source)
    if folders is None:
        raise InputError.of("source", source, "a folder with input/ and target/, or captured/ and original/")
    root = folders[0].parent
    files = [_by_name(folder) for folder in folders]
    _check_partners(root, *files)

    skipped: dict[str, str] = {}
    sides = []
    for folder, paths in zip(folders, files, strict=True):
        entries, broken = scan(folder, list(paths.items()))
        skipped |= {name: f"{_shown(root, paths[name])}: {reason}" for name, reason in broken.items()}
        sides.append({entry.name: entry for entry in entries})
    degraded, targets = sides
    whole = [entry for name, entry in targets.items() if name in degraded]
    _check_sizes(root, [(degraded[entry.name], entry) for entry in whole], scale)
    part = large_enough(part_of(whole, split, root, skipped), split, f"{root}", min_size, skipped)
    return PairFolder(PhotographFolder(degraded[entry.name] for entry in part), PhotographFolder(part, skipped))


def _by_name(folder: Path) -> dict[str, Path]:
    """Relative path without extension -> file, in the order of the relative path."""
    found: dict[str, Path] = {}
    for file, path in image_files(folder):
        name = os.path.splitext(file)[0]
        if name in found:
            raise InputError(f"{found[name]} and {path.name}: two files for one side of a pair: keep one of them")
        found[name] = path
    return found


def _check_partners(root: Path, degraded: dict[str, Path], targets: dict[str, Path]) -> None:
    folded = {name.casefold(): path for name, path in targets.items() if name not in degraded}
    for name, path in degraded.items():
        if name not in targets and name.casefold() in folded:
            both = f"{_shown(root, path)} and {_shown(root, folded[name.casefold()])}"
            raise InputError(f"{root}: {both} differ in case: give partners the same name")
    missing = []
    for side, other in ((degraded, targets), (targets, degraded)):
        alone = [_shown(root, path) for name, path in side.items() if name not in other]
        if alone:
            first = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            missing.append(f"{len(alone)} of {len(side)} images have no partner: {first}")
    if missing:
        raise InputError(f"{root}: {'; '.join(missing)}: give every image a partner of the same name")


def _check_sizes(root: Path, pairs: Sequence[tuple[Entry, Entry]], scale: int) -> None:
    for degraded, target in pairs:
        (height, width), (tall, wide) = degraded.size, target.size
        if (tall, wide) != (height * scale, width * scale):
            raise InputError(
                f"{root}: {_shown(root, degraded.path)} is {width} x {height} and {_shown(root, target.path)} "
                f"{wide} x {tall}: with pairs.scale={scale} its target must be {width * scale} x {height * scale}"
            )


def _shown(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
