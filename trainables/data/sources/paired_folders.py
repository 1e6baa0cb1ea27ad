"""Paired folders: degraded photographs in one subfolder, their targets under the same names in another."""

from __future__ import annotations

import os

import numpy as np

from trainables.data.sources.images import FileImages
from trainables.data.sources.locations import Location
from trainables.errors import InputError

PAIRED_FOLDERS = (("input", "target"), ("captured", "original"))  # degraded, target; in any case


def paired_subfolders(root: Location) -> tuple[Location, Location] | None:
    """The subfolders with the degraded photographs and with their targets, or None where `root` has neither.

    Raises:
        InputError: its subfolders are half of a pair or more than one.
    """
    sides = {side for names in PAIRED_FOLDERS for side in names}
    found = [name for name in root.subfolders() if name.lower() in sides]
    if not found:
        return None
    for names in PAIRED_FOLDERS:
        if sorted(name.lower() for name in found) == sorted(names):
            degraded, target = sorted(found, key=lambda name: names.index(name.lower()))
            return root.join(degraded), root.join(target)
    raise InputError(
        f"{root}: holds {' and '.join(f'{name}/' for name in found)}: give one pair of folders, "
        f"{' or '.join(' with '.join(f'{name}/' for name in names) for names in PAIRED_FOLDERS)}"
    )


def match_partners(
    root: Location, degraded: FileImages, targets: FileImages
) -> tuple[list[str], tuple[FileImages, FileImages]]:
    """The names of pairs, relative paths without the extension, in which the sides may differ; and both sides in the
    order of these names.

    Raises:
        InputError: photographs without partner, with two, or with one whose name differs in case.
    """
    sides = degraded, targets
    rows = [_by_name(side) for side in sides]
    _check_partners(root, sides, rows)
    names = sorted(rows[1])
    degraded, targets = (
        side.take(np.array([place[name] for name in names])) for side, place in zip(sides, rows, strict=True)
    )
    return names, (degraded, targets)


def _by_name(side: FileImages) -> dict[str, int]:
    found: dict[str, int] = {}
    for row, file in enumerate(side.names.to_pylist()):
        name = os.path.splitext(file)[0]
        if name in found:
            raise InputError(
                f"{side.place(found[name])} and {os.path.basename(file)}: two files for one side of a pair: keep one "
                "of them"
            )
        found[name] = row
    return found


def _check_partners(root: Location, sides: tuple[FileImages, FileImages], rows: list[dict[str, int]]) -> None:
    (degraded, targets), (one, other) = sides, rows
    folded = {name.casefold(): row for name, row in other.items() if name not in one}
    for name, row in one.items():
        if name not in other and name.casefold() in folded:
            both = f"{degraded.short_place(row)} and {targets.short_place(folded[name.casefold()])}"
            raise InputError(f"{root}: {both} differ in case: give partners the same name")
    missing = []
    for side, mine, theirs in ((degraded, one, other), (targets, other, one)):
        alone = [side.short_place(row) for name, row in mine.items() if name not in theirs]
        if alone:
            first = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            missing.append(f"{len(alone)} of {len(side)} images have no partner: {first}")
    if missing:
        raise InputError(f"{root}: {'; '.join(missing)}: give every image a partner of the same name")
