"""The catalogue of a source: which images are usable, their sizes and their split. Computed once and cached."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa

from trainables.common.errors import InputError
from trainables.common.paths import write_whole
from trainables.images.sources import decode, formats
from trainables.images.sources.images import Images
from trainables.images.sources.listing import Listing
from trainables.images.sources.notices import SourceWarning
from trainables.images.sources.parquet_images import NO_IMAGE
from trainables.settings.pairs import Split
from trainables.settings.sources import DataSettings

LEAST_TESTED = 3  # photographs: with fewer, an interval is too wide to say anything
LEAST_FOR_TEST = 8  # usable photographs of a source from which test ones are taken
FULLY_CHECKED = 200  # sources of up to this many files are decoded before the start and fingerprinted by content
_FORMAT = 2  # version of the catalogue file
_AT_ONCE = 64  # images that a thread checks per task

_looked: dict[str, Catalogue] = {}  # both sides of the last source, because the second split needs the same


SIZE_SETTINGS: dict[Split, str] = {
    "train": "pairs.image_size",
    "validation": "pairs.validation_size",
    "test": "pairs.test_size",
}
"""Split -> the setting with the side of its crops."""


class UnsuitableImages(InputError):
    """The images do not fit the settings of the pairs.

    Attributes:
        label: the source. problems: all that is wrong, each a part of the message.
    """

    def __init__(self, label: str, problems: Sequence[str]) -> None:
        self.label, self.problems = label, tuple(dict.fromkeys(problems))
        super().__init__(f"{label}: {'; '.join(self.problems)}")


@dataclass(frozen=True)
class Catalogue:
    """The result of checking the images of one side.

    Attributes:
        sizes: int32 (N, 2), height and width; 0 for an unusable image.
        reasons: row -> why the image is unusable, on one line.
        passing: rows of `reasons` whose error may be temporary.
    """

    sizes: np.ndarray
    reasons: dict[int, str]
    passing: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Shares:
    """Shares of the photographs in the validation and test splits; the rest trains."""

    validation: float = DataSettings.validation_share
    test: float = DataSettings.test_share

    @classmethod
    def of(cls, data: DataSettings) -> Shares:
        return cls(data.validation_share, data.test_share)


USUAL = Shares()


@dataclass(frozen=True)
class Part:
    """The usable images of one split.

    Attributes:
        rows: their rows in the listing.
        sizes: int32 (N, 2), height and width; of the targets if the source has pairs.
        rejected: name -> reason, of the unusable images of this split.
        found: number of images of this split, usable or not.
    """

    rows: np.ndarray
    sizes: np.ndarray
    rejected: dict[str, str]
    found: int


def usable_part(
    listing: Listing,
    split: Split,
    min_size: int,
    scale: int,
    max_rejected: float,
    cache: Path | None,
    shares: Shares,
) -> Part:
    """Checks all images of `listing` and selects the usable ones of `split`. A test split may be empty: see `splits`.

    Raises:
        UnsuitableImages: none is large enough, or sizes of partners do not match.
        InputError: fewer than two are usable, more than `max_rejected` of the split are unusable, or partners are
            missing.
    """
    sizes, reasons = _look_at_sides(listing, cache)
    names = listing.names.to_pylist()
    usable = np.ones(len(names), bool)
    usable[list(reasons)] = False
    if not usable.any():
        raise InputError(
            f"{listing.label}: none of its {len(names)} images can be read: {_listed(_by_name(names, reasons))}"
        )
    if usable.sum() < 2:
        left_out = f" (rejected: {_listed(_by_name(names, reasons))})" if reasons else ""
        raise InputError(f"{listing.label}: 1 usable image cannot be split: give at least 2{left_out}")
    problems = _mismatched(listing, sizes, usable, scale) if listing.paired else []

    part = splits(listing, names, usable, shares) == split
    target = sizes[-1]
    if split == "test" and not part.any() and not problems:
        return Part(np.flatnonzero(part), target[part], {}, 0)
    large = target.min(axis=1) >= min_size
    rows = np.flatnonzero(part & usable)
    if len(rows) and not large[rows].any():
        biggest = rows[target[rows].min(axis=1).argmax()]
        wide, tall, setting = target[biggest, 1], target[biggest, 0], SIZE_SETTINGS[split]
        problems.append(
            f"every {split} image is smaller than {setting}={min_size}; the largest is {names[biggest]} "
            f"({wide} x {tall}): give larger images, or a {setting} of at most {min(wide, tall)}"
        )
    if problems:
        raise UnsuitableImages(listing.label, problems)
    for row in np.flatnonzero(part & usable & ~large).tolist():
        reasons[row] = f"{target[row, 1]} x {target[row, 0]}, smaller than {SIZE_SETTINGS[split]}={min_size}"
    rejected = _by_name(names, {row: reason for row, reason in sorted(reasons.items()) if part[row]})
    found = int(part.sum())
    check_rejected(listing.label, split, rejected, found, max_rejected, cache)
    if rejected:
        warnings.warn(_counted(listing.label, split, rejected, found), SourceWarning, stacklevel=4)
    rows = np.flatnonzero(part & usable & large)
    return Part(rows, target[rows], rejected, found)


def look_at(images: Images, cache: Path | None = None) -> Catalogue:
    """The sizes of images, from their headers. Up to 200 images are decoded completely, to check that they can be.

    Args:
        cache: a folder. If it exists, it keeps the result as `catalogue-<hash>.parquet`, which is reused without
            opening an image until one is added, removed or changed. Images that could not be opened are checked again.
    """
    whole = len(images) <= FULLY_CHECKED
    facts = f"{_FORMAT} {PIL.__version__} {formats.suffixes()} {decode.MAX_PIXELS} {whole} {images.state()}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    path = cache / f"catalogue-{key}.parquet" if cache and cache.is_dir() else None
    if key in _looked:
        found, looked = _looked[key], False
    else:
        found = _read(path, len(images)) or Catalogue(np.zeros((len(images), 2), np.int32), {})
        looked = _look_at_rest(images, whole, found)
        while len(_looked) >= 2:
            del _looked[next(iter(_looked))]
        _looked[key] = found
    if path and (looked or not path.exists()):  # the folder may be newer than the cached result
        with suppress(InputError):  # a folder of another user: the check is repeated at the next start
            _write(path, found)
    return found


def _look_at_rest(images: Images, whole: bool, found: Catalogue) -> bool:
    """Checks the images that `found` does not contain; returns whether the result should be saved."""
    rows = np.flatnonzero(~found.sizes.any(axis=1)).tolist()
    pending = [row for row in rows if row not in found.reasons]
    chunks = [pending[start : start + _AT_ONCE] for start in range(0, len(pending), _AT_ONCE)]
    with ThreadPoolExecutor(images.threads) as pool:  # mostly waiting for the disk or the network
        for chunk, seen in zip(chunks, pool.map(partial(_look_at_rows, images, whole), chunks), strict=True):
            for row, (size, reason, lasting) in zip(chunk, seen, strict=True):
                found.sizes[row] = size
                if reason:
                    found.reasons[row] = reason
                if not lasting:
                    found.passing.add(row)
    return len(pending) > len(found.passing)


def _look_at_rows(images: Images, whole: bool, rows: Sequence[int]) -> list[tuple[tuple[int, int], str, bool]]:
    """(size, reason, whether the reason is permanent) of each image."""
    seen = []
    for row in rows:
        try:
            size = images.size(row)
            if whole:
                images.pixels(row)
            seen.append((size, "", True))
        except InputError:
            raise
        except Exception as error:  # decoders raise almost anything on a damaged file
            passing = isinstance(error, MemoryError) or (isinstance(error, OSError) and bool(error.errno))
            seen.append(((0, 0), decode.reason(error), not passing))
    return seen


def _look_at_sides(listing: Listing, cache: Path | None) -> tuple[list[np.ndarray], dict[int, str]]:
    """The sizes on each side, and the reasons of both."""
    looked = [look_at(side, cache) for side in listing.sides]
    reasons: dict[int, str] = {}
    for side, catalogue in zip(listing.sides, looked, strict=True):
        absent = [row for row, reason in catalogue.reasons.items() if reason == NO_IMAGE]
        if listing.paired and absent:
            first = ", ".join(side.short_place(row) for row in absent[:3]) + (", ..." if len(absent) > 3 else "")
            raise InputError(
                f"{listing.label}: {len(absent)} of {len(listing)} pairs lack an image: {first}: give both or neither"
            )
        for row, reason in catalogue.reasons.items():
            reasons[row] = f"{side.short_place(row)}: {reason}" if listing.paired else reason
    return [catalogue.sizes for catalogue in looked], reasons


def _mismatched(listing: Listing, sizes: list[np.ndarray], usable: np.ndarray, scale: int) -> list[str]:
    """The problem with sizes of partners, if there is one."""
    degraded, targets = sizes
    wrong = np.flatnonzero(usable & (targets != degraded * scale).any(axis=1))
    if not len(wrong):
        return []
    row = int(wrong[0])
    (height, width), (tall, wide) = degraded[row], targets[row]
    one, other = (side.short_place(row) for side in listing.sides)
    remedy = f"its target must be {width * scale} x {height * scale}"
    ratios = targets[usable] / np.maximum(degraded[usable], 1)
    if (ratios == ratios[0, 0]).all() and ratios[0, 0] == int(ratios[0, 0]):
        remedy += f", or give --set pairs.scale={int(ratios[0, 0])}, which fits all pairs"
    return [
        f"{len(wrong)} of {usable.sum()} pairs do not have pairs.scale={scale}: {one} is {width} x {height} and "
        f"{other} {wide} x {tall}; {remedy}"
    ]


def splits(listing: Listing, names: Sequence[str], usable: np.ndarray, shares: Shares) -> np.ndarray:
    """The split of every name, (N,), by the hash of the name, so that adding photographs moves none of the others.

    The names at the lower end of the hashes are for validation, those at the upper end for test. If the hashes of the
    usable images leave a split too small, the images nearest to its end join it: validation needs one and training one;
    test needs `LEAST_TESTED`, but takes none from a source of fewer than `LEAST_FOR_TEST` usable images, nor with a
    share of 0, and leaves the other splits one each. Sizes have no influence, so that the splits of different crops
    agree.
    """
    if listing.splits is not None:
        return np.array(listing.splits)
    place = np.array([_place(name) for name in names])
    rows = np.flatnonzero(usable)
    ordered = rows[place[rows].argsort(kind="stable")]
    tested = np.zeros(len(names), bool)
    if shares.test and len(rows) >= LEAST_FOR_TEST:
        tested = place >= 1 - shares.test
        tested[ordered[-LEAST_TESTED:]] = True
        tested[ordered[:2]] = False
    validating = (place < shares.validation) & ~tested
    rest = ordered[~tested[ordered]]
    validating[rest[0]] = True
    validating[rest[-1]] = False
    return np.where(tested, "test", np.where(validating, "validation", "train"))


def _place(name: str) -> float:
    """The position of `name` in [0, 1): uniformly distributed, and always the same."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def check_rejected(
    source: str, split: Split, rejected: Mapping[str, str], found: int, most: float, cache: Path | None = None
) -> None:
    """Refuses a split if more than a share `most` of its `found` images is unusable.

    Args:
        rejected: name -> reason.
        cache: a folder; on refusal the complete list is saved there as `rejected-<hash>.parquet`.

    Raises:
        InputError: the number, the first five, and what to do.
    """
    share = len(rejected) / found if found else 0.0
    if share <= most:
        return
    kept = ""
    if cache:
        digest = hashlib.sha256(repr(sorted(rejected.items())).encode()).hexdigest()[:16]
        path = cache / f"rejected-{digest}.parquet"
        with suppress(InputError):
            _write_table(path, {"name": list(rejected), "reason": list(rejected.values())})
            kept = f"; the complete list is in {path}"
    allowed = math.ceil(share * 1000) / 1000
    raise InputError(
        f"{_counted(source, split, rejected, found)}{kept}: remove them, or allow them with "
        f"--set data.max_rejected={allowed:g}"
    )


def _counted(source: str, split: Split, rejected: Mapping[str, str], found: int) -> str:
    return f"{source}: {len(rejected)} of {found} {split} images rejected: {_listed(rejected)}"


def _by_name(names: list[str], reasons: dict[int, str]) -> dict[str, str]:
    return {names[row]: reason for row, reason in reasons.items()}


def _listed(rejected: Mapping[str, str], shown: int = 5) -> str:
    listed = "; ".join(f"{name} ({reason})" for name, reason in list(rejected.items())[:shown])
    return listed + (f"; and {len(rejected) - shown} more" if len(rejected) > shown else "")


def _read(path: Path | None, rows: int) -> Catalogue | None:
    """The saved catalogue; None if it is missing or damaged."""
    if path is None or not path.exists():
        return None
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        sizes = np.stack([table[side].to_numpy() for side in ("height", "width")], axis=1)
        reasons = {row: reason for row, reason in enumerate(table["reason"].to_pylist()) if reason}
    except (OSError, LookupError, pa.ArrowException):
        return None
    return Catalogue(sizes.astype(np.int32), reasons) if len(sizes) == rows else None


def _write(path: Path, catalogue: Catalogue) -> None:
    lasting = {row: reason for row, reason in catalogue.reasons.items() if row not in catalogue.passing}
    reasons = pa.array([lasting.get(row) for row in range(len(catalogue.sizes))], pa.string())
    _write_table(path, {"height": catalogue.sizes[:, 0], "width": catalogue.sizes[:, 1], "reason": reasons})


def _write_table(path: Path, columns: dict[str, object]) -> None:
    """Writes under a temporary name and renames, so that other processes see the complete file or none."""
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    write_whole(path, sink.getvalue())
