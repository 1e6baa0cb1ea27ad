"""Photographs: the sample that scikit-image ships, or any local folder; split once, read when asked for.

The split is by photograph, never by crop: no pixel of a validation photograph is ever trained on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainables.errors import InputError

Split = Literal["train", "validation"]

SAMPLE = "sample"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Decoders are named, not guessed from content: a PostScript file called `photo.png` must not start an
# interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 150_000_000  # a larger image is refused: 150 megapixels are 450 MB once decoded
CACHE_BYTES = 256 * 2**20
VALIDATION_SHARE = 0.1
FULLY_CHECKED = 200  # folders up to this many files are decoded at the door and fingerprinted by content
PAIRED_FOLDERS = (("input", "target"), ("captured", "original"))  # degraded, target; in any case

# File, split and the box to keep, (left, top, right, bottom). The two motorcycle pictures are a stereo pair
# of one scene, so both train. The retina is a disc on black, 1411 px wide: the 960 px square inside the disc
# is kept.
_SAMPLE_FILES: dict[str, tuple[str, Split, tuple[int, int, int, int] | None]] = {
    "astronaut": ("astronaut.png", "train", None),
    "hubble_deep_field": ("hubble_deep_field.jpg", "train", None),
    "ihc": ("ihc.png", "train", None),
    "motorcycle_left": ("motorcycle_left.png", "train", None),
    "motorcycle_right": ("motorcycle_right.png", "train", None),
    "retina": ("retina.jpg", "train", (225, 225, 1185, 1185)),
    "chelsea": ("chelsea.png", "validation", None),
    "coffee": ("coffee.png", "validation", None),
    "rocket": ("rocket.jpg", "validation", None),
}


@dataclass(frozen=True, eq=False)
class Photograph:
    """One decoded photograph. `pixels`: uint8 (H, W, 3), RGB."""

    name: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Entry:
    """Where a photograph lies; `size` is (height, width) as shown, so after EXIF orientation and `box`."""

    name: str
    path: Path
    size: tuple[int, int]
    box: tuple[int, int, int, int] | None = None


class PhotographFolder(Sequence[Photograph]):
    """Photographs on disk, decoded on access; the last 256 MB of pixels stay in memory.

    Attributes:
        sizes: (height, width) of every photograph, known without decoding it.
        skipped: name -> reason for every file that was left out; `read` adds those it finds broken.
    """

    def __init__(self, entries: Iterable[Entry], skipped: dict[str, str] | None = None) -> None:
        self._entries = list(entries)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self.skipped = dict(skipped or {})
        self.sizes = [entry.size for entry in self._entries]

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Photograph: ...
    @overload
    def __getitem__(self, index: slice) -> PhotographFolder: ...
    def __getitem__(self, index: int | slice) -> Photograph | PhotographFolder:
        if isinstance(index, slice):
            return PhotographFolder(self._entries[index], self.skipped)
        return self.read(index)

    def read(self, index: int) -> Photograph:
        """Decode photograph `index`. Raises `InputError` naming the file when its pixels cannot be read."""
        index = range(len(self))[index]
        entry = self._entries[index]
        pixels = self._cache.pop(index, None)
        if pixels is None:
            try:
                pixels = _decode(entry.path, entry.box)
            except Exception as error:
                self.skipped[entry.name] = _one_line(error)
                raise InputError(
                    f"{entry.path}: cannot be decoded ({_one_line(error)}): replace or remove it"
                ) from error
            pixels.setflags(write=False)
        self._cache[index] = pixels  # newest last
        while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return Photograph(entry.name, pixels)


def load_photographs(source: str, split: Split, min_size: int = 1) -> PhotographFolder:
    """The photographs of one split.

    Args:
        source: `"sample"`, the colour photographs inside the installed scikit-image, or the path of a local
            folder. A folder is searched recursively for .jpg .jpeg .png .webp .bmp .tif .tiff (any case;
            hidden files and linked folders are passed over) in the order of the relative path. About one
            image in ten validates, by the hash of its relative path, so adding images moves none of those
            already there; only a folder whose hashes leave one side empty lends that side its nearest image.
        split: `"train"` or `"validation"`.
        min_size: shorter side a photograph needs, in pixels. Smaller ones are skipped.

    Files that cannot be used are skipped with one warning that counts and names them. Folders of up to 200
    files are decoded once here; in larger ones only the headers are read, and `read` reports a file broken
    further on.

    Raises:
        InputError: no such folder, not a folder, not readable, no usable image, too few images to split, or
            every image of the split smaller than `min_size`.
    """
    if split not in ("train", "validation"):
        raise InputError.of("split", split, '"train" or "validation"')
    if source == SAMPLE:
        entries, skipped, label = _sample_entries(split), dict[str, str](), "the sample"
    else:
        root = existing_folder(source)
        entries, skipped = scan(root, image_files(root))
        entries, label = part_of(entries, split, root, skipped), f"{root}"
    return PhotographFolder(large_enough(entries, split, label, min_size, skipped), skipped)


def fingerprint(source: str) -> str:
    """Identify the content of `source` (both splits): 64 hexadecimal digits.

    The sample and folders of up to 200 images are hashed by file content; larger folders by relative path,
    size and modification time, because reading terabytes to name a cache entry would cost more than the entry
    saves. Of paired folders it is the two subfolders that count.

    Raises:
        InputError: as `load_photographs`, for the folder itself.
    """
    digest = hashlib.sha256()
    if source == SAMPLE:
        for name, (file, split, box) in _SAMPLE_FILES.items():
            digest.update(f"{name} {split} {box} {_sha256(_sample_folder() / file)}\n".encode())
        return digest.hexdigest()
    paired = paired_subfolders(source)
    folders = {"": existing_folder(source)} if paired is None else {"degraded/": paired[0], "target/": paired[1]}
    for side, folder in folders.items():
        files = image_files(folder)
        describe: Callable[[Path], str] = _sha256 if len(files) <= FULLY_CHECKED else _stamp
        for name, path in files:
            digest.update(f"{side}{name}\0{describe(path)}\n".encode())
    return digest.hexdigest()


def paired_subfolders(source: str) -> tuple[Path, Path] | None:
    """The subfolders with the degraded photographs and with their targets, or None where `source` has neither.

    Raises:
        InputError: no such folder, or its subfolders are half of a pair or more than one.
    """
    if source == SAMPLE:
        return None
    root = existing_folder(source)
    sides = {side for names in PAIRED_FOLDERS for side in names}
    found = sorted(path for path in root.iterdir() if path.name.lower() in sides and path.is_dir())
    if not found:
        return None
    for names in PAIRED_FOLDERS:
        if sorted(path.name.lower() for path in found) == sorted(names):
            degraded, target = sorted(found, key=lambda path: names.index(path.name.lower()))
            return degraded, target
    raise InputError(
        f"{root}: holds {' and '.join(f'{path.name}/' for path in found)}: give one pair of folders, "
        f"{' or '.join(' with '.join(f'{name}/' for name in names) for names in PAIRED_FOLDERS)}"
    )


def _sample_folder() -> Path:
    spec = importlib.util.find_spec("skimage")  # finds the package without paying for its import
    if spec is None or spec.origin is None:
        raise InputError('source "sample" is the photographs in scikit-image\'s wheel: install scikit-image')
    return Path(spec.origin).parent / "data"


def _sample_entries(split: Split) -> list[Entry]:
    entries = []
    for name, (file, part, box) in _SAMPLE_FILES.items():
        if part != split:
            continue
        path = _sample_folder() / file
        if not path.is_file():
            raise InputError(f'source "sample": scikit-image\'s data folder lacks {file}: reinstall it')
        size = _shown_size(path) if box is None else (box[3] - box[1], box[2] - box[0])
        entries.append(Entry(name, path, size, box))
    return entries


def existing_folder(source: str) -> Path:
    accepted = '"sample" or a local folder of images'
    if not source:
        raise InputError.of("source", source, accepted)
    root = Path(source).expanduser()
    try:
        if not root.exists():
            raise InputError(f"{root}: no such folder: give {accepted}")
        if not root.is_dir():
            raise InputError(f"{root}: is a file, not a folder: give {accepted}")
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror}): give {accepted}") from error
    return root


def image_files(root: Path) -> list[tuple[str, Path]]:
    """(relative posix path, path) of every image file below `root`, sorted.

    Raises:
        InputError: none, or a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}): a part of {root}") from error

    found = []
    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                path = Path(folder, file)
                found.append((path.relative_to(root).as_posix(), path))
    if not found:
        raise InputError(f"{root}: no images in it: give a folder with {' '.join(SUFFIXES)} files")
    return sorted(found)


def scan(root: Path, files: Sequence[tuple[str, Path]]) -> tuple[list[Entry], dict[str, str]]:
    """The usable ones of `files`, (name, path) below `root`, and name -> reason for the others.

    Raises:
        InputError: none is usable.
    """
    decode_all = len(files) <= FULLY_CHECKED

    def look(path: Path) -> tuple[int, int] | str:
        try:
            size = _shown_size(path)
            if decode_all:
                _decode(path, None)
            return size
        except Exception as error:  # decoders raise almost anything on a damaged file
            return _one_line(error)

    entries, skipped = [], {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # waiting for the disk, mostly
        for (name, path), seen in zip(files, pool.map(look, [path for _, path in files]), strict=True):
            if isinstance(seen, str):
                skipped[name] = seen
            else:
                entries.append(Entry(name, path, seen))
    if not entries:
        raise InputError(f"{root}: none of its {len(files)} images can be read: {_listed(skipped)}")
    return entries, skipped


def part_of(entries: list[Entry], split: Split, root: Path, skipped: dict[str, str]) -> list[Entry]:
    """The images of `split`, decided before sizes are compared: both splits must agree on it.

    Raises:
        InputError: too few images to split.
    """
    if len(entries) < 2:
        left_out = f" (skipped: {_listed(skipped)})" if skipped else ""
        raise InputError(f"{root}: {len(entries)} usable image cannot be split: give at least 2{left_out}")
    place = {entry.name: _place(entry.name) for entry in entries}
    lowest, highest = min(place, key=place.__getitem__), max(place, key=place.__getitem__)
    validating = {name for name, at in place.items() if at < VALIDATION_SHARE or name == lowest} - {highest}
    return [entry for entry in entries if (entry.name in validating) == (split == "validation")]


def large_enough(entries: list[Entry], split: Split, label: str, min_size: int, skipped: dict[str, str]) -> list[Entry]:
    """The images whose shorter side is `min_size` or more. Adds the others to `skipped` and warns of all in it.

    Raises:
        InputError: none is large enough.
    """
    large = [entry for entry in entries if min(entry.size) >= min_size]
    if not large:
        biggest = max(entries, key=lambda entry: min(entry.size))
        raise InputError(
            f"{label}: every {split} image is smaller than the {min_size} px needed; the largest is "
            f"{biggest.name} ({biggest.size[1]} x {biggest.size[0]}): give larger images or a smaller crop"
        )
    for entry in entries:
        if min(entry.size) < min_size:
            skipped[entry.name] = f"{entry.size[1]} x {entry.size[0]}, smaller than {min_size} px"
    if skipped:
        warnings.warn(f"{label}: {len(skipped)} images skipped: {_listed(skipped)}", stacklevel=3)
    return large


def _place(name: str) -> float:
    """Where `name` falls in [0, 1), evenly and for good."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _open(path: Path) -> Image.Image:
    image = Image.open(path, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"decompression bomb: {image.width} x {image.height}, over {MAX_PIXELS} pixels")
    return image


def _shown_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header, after EXIF orientation (5 to 8 lie on their side)."""
    with _open(path) as image:
        turned = _orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, by the header alone: PNG's own `getexif` would decode all pixels."""
    return int(Image.Image.getexif(image).get(0x0112, 1))


def _decode(path: Path, box: tuple[int, int, int, int] | None) -> np.ndarray:
    """uint8 (H, W, 3). 16-bit grey is scaled to 8 bits, transparency is dropped, EXIF orientation applied."""
    with _open(path) as image:
        if image.mode in ("I", "F"):
            raise ValueError(f"pixel mode {image.mode} has no agreed range: 8 or 16 bits a channel accepted")
        shown = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        if shown.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
            grey = np.round(np.asarray(shown).astype(np.float32) / 257).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        else:
            pixels = np.array(shown.convert("RGB"))
    if box is not None:
        left, top, right, bottom = box
        pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
    return pixels


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(FORMATS)} image"
    return " ".join((str(error) or type(error).__name__).split())


def _listed(skipped: dict[str, str], shown: int = 5) -> str:
    listed = "; ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:shown])
    return listed + (f"; and {len(skipped) - shown} more" if len(skipped) > shown else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
