"""Paired folders: degraded photographs in one subfolder, their targets with the same names in another."""

from __future__ import annotations

import itertools
import os
import unicodedata

import numpy as np

from trainables.common.errors import InputError
from trainables.common.locations import Location
from trainables.images.sources.images import FileImages

# Usual names of the two subfolders, in any case: those of this field's data sets.
DEGRADED_FOLDERS = ("input", "captured", "lq", "lr", "degraded", "low", "noisy", "blur", "blurry")
TARGET_FOLDERS = ("target", "original", "gt", "hq", "hr", "high", "clean", "sharp", "groundtruth", "ground_truth")
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})
# A folder with one of these names alone lacks its partner. The other names are usual without pairs, too.
_NEVER_ALONE = frozenset({"input", "captured", "lq", "lr", "target", "gt", "hq", "hr"})
_MOST_SIDES = 16


def paired_subfolders(root: Location) -> tuple[Location, Location] | None:
    """The subfolders with the degraded photographs and with their targets, or None if `root` holds no pairs.

    Raises:
        InputError: `root` has only one folder of a pair, or several of one side; or its subfolders hold the pairs.
    """
    folders = root.subfolders()
    degraded, targets = (
        [name for name in folders if name.lower() in names] for names in (DEGRADED_FOLDERS, TARGET_FOLDERS)
    )
    if len(degraded) == len(targets) == 1:
        return root.join(degraded[0]), root.join(targets[0])
    if (degraded and targets) or any(name.lower() in _NEVER_ALONE for name in (*degraded, *targets)):
        raise InputError(
            f"{root}: holds {' and '.join(f'{name}/' for name in sorted(degraded + targets))}: give one folder of "
            f"degraded images ({', '.join(DEGRADED_FOLDERS)}) and one of their targets ({', '.join(TARGET_FOLDERS)}), "
            "or name them with --data-input and --data-target"
        )
    for name in folders:
        if name.lower() in _SPLITS and (pair := paired_subfolders(root.join(name))):
            inside = " and ".join(f"{name}/{side.name}/" for side in pair)
            raise InputError(f"{root}: holds pairs in {inside}: give one folder of pairs, such as {root.join(name)}")
    return None


def subfolders_with_equal_names(files: list[str]) -> tuple[str, str] | None:
    """The two subfolders of relative paths that share most names, whatever the extensions, or None: pairs are meant,
    even if a partner is missing or a third folder is there. More than `_MOST_SIDES` subfolders are albums or classes.
    """
    names: dict[str, set[str]] = {}
    for file in files:
        folder, below, name = file.partition("/")
        if below:
            names.setdefault(folder, set()).add(os.path.splitext(name)[0])
    if len(names) > _MOST_SIDES:
        return None
    shares = {
        (one, other): len(names[one] & names[other]) / max(len(names[one]), len(names[other]))
        for one, other in itertools.combinations(names, 2)
    }
    nearest = max(shares, key=lambda pair: shares[pair], default=None)
    return nearest if nearest and shares[nearest] > 0.5 else None


def match_partners(
    label: str, degraded: FileImages, targets: FileImages
) -> tuple[list[str], tuple[FileImages, FileImages]]:
    """The names of pairs, and both sides in the order of these names.

    A name is the target's relative path without the extension, which may differ between the sides. Unicode's NFC and
    NFD forms of a name (é as one character or as two) are equal, because the operating system chooses the form.

    Raises:
        InputError: a photograph without partner, with two, or with a partner whose name differs in case.
    """
    sides = degraded, targets
    rows = [_by_name(side) for side in sides]
    _check_partners(label, sides, rows)
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


def _check_partners(label: str, sides: tuple[FileImages, FileImages], rows: list[dict[str, int]]) -> None:
    (degraded, targets), (one, other) = sides, rows
    folded = {name.casefold(): row for name, row in other.items() if name not in one}
    for name, row in one.items():
        if name not in other and name.casefold() in folded:
            both = f"{degraded.short_place(row)} and {targets.short_place(folded[name.casefold()])}"
            raise InputError(f"{label}: {both} differ in case: give partners the same name")
    missing = []
    for side, mine, theirs in ((degraded, one, other), (targets, other, one)):
        alone = [side.short_place(row) for name, row in mine.items() if name not in theirs]
        if alone:
            first = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
            missing.append(f"{len(alone)} of {len(side)} images have no partner: {first}")
    if missing:
        raise InputError(f"{label}: {'; '.join(missing)}: give every image a partner of the same name")
