"""Paired folders: degraded photographs in one subfolder, their targets with the same names in another."""

from __future__ import annotations

import os
import unicodedata

import numpy as np

from trainables.common.errors import InputError
from trainables.common.locations import Location
from trainables.images.sources.images import FileImages

PAIRED_FOLDERS = (("input", "target"), ("captured", "original"))  # degraded, target; in any case


def paired_subfolders(root: Location) -> tuple[Location, Location] | None:
    """The subfolders with the degraded photographs and with their targets, or None if `root` has neither.

    Raises:
        InputError: `root` has only one folder of a pair, or more than one pair.
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
    """The names of pairs, and both sides in the order of these names.

    A name is the target's relative path without the extension, which may differ between the sides. Unicode's NFC and
    NFD forms of a name (é as one character or as two) are equal, because the operating system chooses the form.

    Raises:
        InputError: a photograph without partner, with two, or with a partner whose name differs in case.
    """
    sides = degraded, targets
    rows = [_by_name(side) for side in sides]
    _check_partners(root, sides, rows)
    files = targets.file_names
    named = sorted((os.path.splitext(files[row])[0], name) for name, row in rows[1].items())
    degraded, targets = (
        side.take(np.array([place[name] for _, name in named])) for side, place in zip(sides, rows, strict=True)
    )
    return [own for own, _ in named], (degraded, targets)


def _by_name(side: FileImages) -> dict[str, int]:
    """The row of each name without extension, in NFC."""
    found: dict[str, int] = {}
    files = side.file_names
    for row, file in enumerate(files):
        name = unicodedata.normalize("NFC", os.path.splitext(file)[0])
        if name in found:
            # Names that look equal are shown with escapes.
            unlike = os.path.splitext(files[found[name]])[0] != os.path.splitext(file)[0]
            written = f" ({files[found[name]]!a} and {file!a})" if unlike else ""
            raise InputError(
                f"{side.place(found[name])} and {os.path.basename(file)}{written}: two files for one image of a pair: "
                "keep one of them"
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
