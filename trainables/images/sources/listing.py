"""The listing of a source: the names of its images, before any image is opened."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainables.common.errors import InputError
from trainables.common.locations import Location, is_uri, locate
from trainables.images.sources.images import FileImages, Images, names_column
from trainables.images.sources.notices import SourceWarning
from trainables.images.sources.paired_folders import match_partners, paired_subfolders
from trainables.images.sources.parquet_images import list_parquet
from trainables.settings.pairs import Split
from trainables.settings.sources import SAMPLE

ACCEPTED_SOURCES = (
    '"sample", a folder of images, of pairs or of .parquet files, a .txt list of images, or a .parquet file'
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
COUNTED = (*SUFFIXES, ".gif")  # a GIF is listed, so that it is reported when it is opened

# File, split, and the box to crop, (left, top, right, bottom). The two motorcycle pictures are a stereo pair of one
# scene, so both are for training. The retina is a disc on black, 1411 px wide, cropped to the 960 px
# square inside the disc.
SAMPLE_FILES: dict[str, tuple[str, Split, tuple[int, int, int, int] | None]] = {
    "astronaut": ("astronaut.png", "train", None),
    "hubble_deep_field": ("hubble_deep_field.jpg", "train", None),
    "ihc": ("ihc.png", "train", None),
    "motorcycle_left": ("motorcycle_left.png", "train", None),
    "motorcycle_right": ("motorcycle_right.png", "train", None),
    "retina": ("retina.jpg", "train", (225, 225, 1185, 1185)),
    "chelsea": ("chelsea.png", "test", None),
    "coffee": ("coffee.png", "validation", None),
    "rocket": ("rocket.jpg", "test", None),
}


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


class SampleImages(FileImages):
    """The sample's photographs, cropped to their boxes."""

    def size(self, row: int) -> tuple[int, int]:
        box = self._box(row)
        return super().size(row) if box is None else (box[3] - box[1], box[2] - box[0])

    def pixels(self, row: int) -> np.ndarray:
        left, top, right, bottom = self._box(row) or (0, 0, None, None)
        return np.ascontiguousarray(super().pixels(row)[top:bottom, left:right])

    def _box(self, row: int) -> tuple[int, int, int, int] | None:
        return next(box for file, _, box in SAMPLE_FILES.values() if file == self.names[row].as_py())


def list_source(source: str) -> Listing:
    """The images or pairs of a source. Their order does not depend on the order in which files were written.

    Args:
        source: `"sample"`, the colour photographs inside the installed scikit-image. Or a local path, or a URI
            (`s3://`, `gs://`, `file://`, see `resolve_uri`), of one of:

            - a folder, searched recursively for images (`SUFFIXES` in any case; hidden files and linked folders are
              skipped), named by relative path;
            - a folder with the subfolders `input/` and `target/`, or `captured/` and `original/`, searched in the same
              way: partners have the same relative path. The extension is not part of their name and may differ, and so
              may the Unicode form of an accent. A `SourceWarning` reports images outside the two subfolders;
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
        return _sample()
    if not source:
        raise InputError.of("source", source, ACCEPTED_SOURCES)
    place = locate(source)
    try:
        kind = place.kind()
        if kind == "nothing":
            raise InputError(f"{place}: no such folder or file: give {ACCEPTED_SOURCES}")
        if kind == "folder":
            return _folder(place)
        if place.name.lower().endswith(".txt"):
            return _text_file(place)
        if place.name.lower().endswith(".parquet"):
            return _parquet(place.parent, [place.name], np.array([place.stamp()]), f"{place}")
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror}): give {ACCEPTED_SOURCES}") from error
    raise InputError(f"{place}: is a file, not a folder: give {ACCEPTED_SOURCES}")


def _sample() -> Listing:
    spec = importlib.util.find_spec("skimage")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise InputError('source "sample": its photographs are in scikit-image\'s wheel: install scikit-image')
    root = Location(os.path.join(os.path.dirname(spec.origin), "data"))
    files = [file for file, _, _ in SAMPLE_FILES.values()]
    stamps = np.array([root.join(file).stamp() for file in files], np.int64)
    for file, (size, _) in zip(files, stamps, strict=True):
        if size < 0:
            raise InputError(f'source "sample": scikit-image\'s data folder lacks {file}: reinstall it')
    splits = tuple(split for _, split, _ in SAMPLE_FILES.values())
    return Listing("the sample", pa.array(list(SAMPLE_FILES)), (SampleImages(root, pa.array(files), stamps),), splits)


def _folder(root: Location) -> Listing:
    pair = paired_subfolders(root)
    if pair is not None:
        if loose := root.loose_files(COUNTED):
            first = ", ".join(loose[:3]) + (", ..." if len(loose) > 3 else "")
            beside = " and ".join(f"{folder.name}/" for folder in pair)
            text = f"{root}: {len(loose)} images next to {beside} are not used: {first}"
            warnings.warn(text, SourceWarning, stacklevel=4)
        names, sides = match_partners(root, *(_images_below(folder) for folder in pair))
        return Listing(f"{root}", pa.array(names), sides)
    files, stamps = root.files((*COUNTED, ".parquet"))
    tables = np.array([file.lower().endswith(".parquet") for file in files], bool)
    if tables.all() and files:
        return _parquet(root, files, stamps, f"{root}")
    images = _files(root, [file for file, table in zip(files, tables, strict=True) if not table], stamps[~tables])
    return Listing(f"{root}", images.names, (images,))


def _images_below(root: Location) -> FileImages:
    return _files(root, *root.files(COUNTED))


def _files(root: Location, files: list[str], stamps: np.ndarray) -> FileImages:
    if not files:
        raise InputError(f"{root}: no images in it: give a folder with {' '.join(SUFFIXES)} files")
    return FileImages(root, names_column(files, root), stamps)


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
