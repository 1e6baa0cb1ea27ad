"""The listing of a source: the names of its images, before any image is opened."""

from __future__ import annotations

import os
import posixpath
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainables.common.errors import InputError
from trainables.common.locations import Location, is_uri, locate
from trainables.common.paths import RUN_SETTINGS
from trainables.images.sources import formats
from trainables.images.sources.images import FileImages, Images, names_column
from trainables.images.sources.notices import SourceWarning
from trainables.images.sources.own_results import left_out
from trainables.images.sources.paired_folders import match_partners, paired_subfolders, subfolders_with_equal_names
from trainables.images.sources.parquet_images import list_parquet
from trainables.images.sources.sample import SAMPLE_NAMES, sample_images
from trainables.settings.pairs import Split
from trainables.settings.sources import SAMPLE

ACCEPTED_SOURCES = (
    '"sample", a folder of images, of pairs or of .parquet files, a .txt list of images, or a .parquet file'
)
SUFFIXES = formats.suffixes()
COUNTED = (*SUFFIXES, ".gif")  # a GIF is listed, so that it is reported when it is opened
FOUND = tuple(dict.fromkeys((*COUNTED, *formats.IMAGE_SUFFIXES)))  # others are counted, but not read


@dataclass(frozen=True)
class Listing:
    """The images of a source.

    Attributes:
        label: the source's name in messages.
        names: of the photographs or pairs, in the order of the sides.
        sides: the photographs; or the degraded ones and their targets.
        splits: the split of each, in the same order, if hashes do not decide it.
    """

    label: str
    names: pa.StringArray
    sides: tuple[Images, ...]
    splits: tuple[Split, ...] | None = None

    @property
    def paired(self) -> bool:
        return len(self.sides) == 2

    def __len__(self) -> int:
        return len(self.names)


def list_source(source: str) -> Listing:
    """The images or pairs of a source. Their order does not depend on the order in which files were written.

    Args:
        source: `"sample"`, see `trainables.images.sources.sample`. Or a local path, or a URI
            (`s3://`, `gs://`, `file://`, see `resolve_uri`), of one of:

            - a folder, searched recursively for images (`SUFFIXES` in any case; hidden files and results of runs are
              skipped, linked folders searched once), named by relative path. A `SourceWarning` counts images that are
              not read;
            - a folder with one subfolder of `DEGRADED_FOLDERS` and one of `TARGET_FOLDERS`, such as `input/` and
              `target/`, searched in the same way: partners have the same relative path. The extension is not part of
              their name and may differ, and so may the Unicode form of an accent. A `SourceWarning` reports images
              outside the two subfolders;
            - a folder without images that holds `.parquet` files, or one such file: a row is an image (column
              `image`) or a pair (`input` and `target`, or `captured` and `original`), as binary or as Hugging Face's
              struct, named `<file>/<row>`;
            - a `.txt` file with one image per line, named as written after resolving `./` and `x/../`: a path relative
              to the file's folder or absolute, or a URI. Empty lines and lines that begin with # are skipped.

    Raises:
        InputError: no such source, a source of another kind, or one that cannot be reached or read; see also
            `match_partners` and `list_parquet`.
    """
    if source == SAMPLE:
        return Listing("the sample", pa.array(list(SAMPLE_NAMES)), (sample_images(),), tuple(SAMPLE_NAMES.values()))
    if not source:
        raise InputError.of("--data", source, ACCEPTED_SOURCES)
    place = locate(source)
    try:
        kind = place.kind()
        if kind == "nothing":
            raise InputError(f"--data {place}: no such folder or file: give {ACCEPTED_SOURCES}")
        if kind == "folder":
            return _folder(place)
        if place.name.lower().endswith(".txt"):
            return _text_file(place)
        if place.name.lower().endswith(".parquet"):
            return _parquet(place.parent, [place.name], np.array([place.stamp()]), f"{place}")
    except OSError as error:
        raise InputError(f"--data {place}: cannot be read ({error.strerror}): give {ACCEPTED_SOURCES}") from error
    raise InputError(f"--data {place}: is a file, not a folder: give {ACCEPTED_SOURCES}")


def list_pairs(degraded: str, targets: str) -> Listing:
    """The pairs in two folders of any names: partners have the same relative path, as in `list_source`.

    Args:
        degraded, targets: local folders or URIs.

    Raises:
        InputError: not two different folders, or images without partner; see `match_partners`.
    """
    folders = {"--data-input": locate(degraded), "--data-target": locate(targets)}
    for flag, folder in folders.items():
        if folder.kind() != "folder":
            raise InputError(f"{flag} {folder}: no such folder: give a folder of images")
    one, other = folders.values()
    if one == other:
        raise InputError(f"--data-input {one}: is also given as --data-target: give the folder of the degraded images")
    label = f"{one} and {other}"
    names, sides = match_partners(label, *(images_below(folder) for folder in (one, other)))
    return Listing(label, pa.array(names), sides)


def _folder(root: Location) -> Listing:
    pair = paired_subfolders(root)
    if pair is not None:
        if loose := root.loose_files(FOUND):
            first = ", ".join(loose[:3]) + (", ..." if len(loose) > 3 else "")
            beside = " and ".join(f"{folder.name}/" for folder in pair)
            _warn(f"{root}: {len(loose)} images next to {beside} are not used: {first}")
        names, sides = match_partners(f"{root}", *(images_below(folder) for folder in pair))
        return Listing(f"{root}", pa.array(names), sides)
    files, stamps = _listed(root, (*FOUND, ".parquet"))
    tables = np.array([file.lower().endswith(".parquet") for file in files], bool)
    if tables.all() and files:
        return _parquet(root, files, stamps, f"{root}")
    once = ~tables & ~_named_twice(root, files)
    images = _files(root, [file for file, use in zip(files, once, strict=True) if use], stamps[once])
    if twins := subfolders_with_equal_names(images.file_names):
        one, other = (f"{name}/" for name in twins)
        _warn(
            f"{root}: {one} and {other} hold images of the same names; all {len(images)} images are used as separate "
            "photographs; if they are pairs, give --data-input and --data-target"
        )
    return Listing(f"{root}", images.names, (images,))


def _named_twice(root: Location, files: list[str]) -> np.ndarray:
    """Which files are links to a file that has another name in the source, bool (N,): by both names, one photograph
    could be in two splits. The file's own name counts, or else the first link's.
    """
    twice = np.zeros(len(files), bool)
    linked = np.array([not root.store and os.path.islink(f"{root.path}/{file}") for file in files], bool)
    if not linked.any():
        return twice
    seen = set[tuple[int, int]]()
    for row in (*np.flatnonzero(~linked).tolist(), *np.flatnonzero(linked).tolist()):
        with suppress(OSError):  # a broken link, which is rejected by name
            status = os.stat(f"{root.path}/{files[row]}")
            twice[row] = linked[row] and (status.st_dev, status.st_ino) in seen
            seen.add((status.st_dev, status.st_ino))
    if twice.any():
        first = files[int(twice.argmax())]
        _warn(f"{root}: {twice.sum()} links to photographs with another name are not used, such as {first}")
    return twice


def images_below(root: Location) -> FileImages:
    """The images of a folder, searched as in `list_source`. A `SourceWarning` counts those that are not read.

    Raises:
        InputError: there are none that can be read.
    """
    return _files(root, *_listed(root, FOUND))


def _listed(root: Location, suffixes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """`Location.files` without the results of runs, which a warning names."""
    files, stamps = root.files((*suffixes, RUN_SETTINGS))
    ours, runs = left_out(files)
    pictures = [name for name, own in zip(files, ours, strict=True) if own and name.lower().endswith(FOUND)]
    if pictures:
        where = (
            f"in folders of runs ({runs[0]}{', ...' if len(runs) > 1 else ''})" if runs else f"such as {pictures[0]}"
        )
        _warn(f"{root}: {len(pictures)} images that a sweep or preparation wrote are not used, {where}")
    return [name for name, own in zip(files, ours, strict=True) if not own], stamps[~ours]


def _files(root: Location, files: list[str], stamps: np.ndarray) -> FileImages:
    """The images among `files` that can be read. The others are counted in a warning."""
    read = [file.lower().endswith(COUNTED) for file in files]
    if left_out := formats.unread_kinds(files):
        _warn(f"{root}: images that are not read: {left_out}")
    if not any(read):
        found = f"only {left_out}" if left_out else "no images in it"
        raise InputError(f"{root}: {found}: give a folder with {' '.join(SUFFIXES)} files")
    names = [file for file, use in zip(files, read, strict=True) if use]
    return FileImages(root, names_column(names, root), stamps[np.array(read, bool)])


def _warn(text: str) -> None:
    warnings.warn(text, SourceWarning, stacklevel=2)


def _parquet(root: Location, files: list[str], stamps: np.ndarray, label: str) -> Listing:
    names, sides = list_parquet(root, files, stamps)
    return Listing(label, pa.array(names), sides)


def _text_file(place: Location) -> Listing:
    try:
        lines = [line.strip() for line in place.read().decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{place}: not a text file in UTF-8: give one image per line") from None
    lines = [line if is_uri(line) else posixpath.normpath(line) for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{place}: lists no images: give one path or URI per line")
    # A URI may contain credentials, which must not be part of a name.
    named = sorted((str(locate(line)) if is_uri(line) else line, line) for line in lines)
    names, lines = [name for name, _ in named], [line for _, line in named]
    root, seen = place.parent, set[str]()
    for name, line in named:
        where = str(root.join(line))
        if where in seen:
            raise InputError(f"{place}: lists {name} twice: give each image once")
        seen.add(where)
    with ThreadPoolExecutor(32) as pool:  # each URI needs a request
        stamps = list(pool.map(lambda line: root.join(line).stamp(), lines))
    missing = [name for name, (size, _) in zip(names, stamps, strict=True) if size < 0]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{place}: {len(missing)} of the {len(lines)} listed images do not exist: {first}: give paths relative "
            f"to {root}, absolute paths or URIs"
        )
    images = FileImages(root, names_column(lines, place), np.array(stamps, np.int64))
    return Listing(f"{place}", pa.array(names), (images,))
