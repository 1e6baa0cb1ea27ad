"""Formats of image files: which are read, and what would read the others."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from PIL import features

_CONVERT = "convert them to PNG"
_RAW = "dng cr2 cr3 crw nef nrw arw sr2 srf raf orf rw2 pef srw x3f 3fr fff iiq erf mef mos mrw kdc dcr rwl gpr"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: in messages.
        suffixes: of its files, lower case.
        pillow: its name in Pillow; empty if Pillow's decoder is not used.
        plugin: module of the package that teaches Pillow to read it; empty if Pillow reads it by itself.
        remedy: how its files can be used, if they are not read.
    """

    name: str
    suffixes: tuple[str, ...]
    pillow: str = ""
    plugin: str = ""
    remedy: str = _CONVERT

    @property
    def read(self) -> bool:
        """Whether its files can be read here."""
        if self.plugin:
            return importlib.util.find_spec(self.plugin) is not None
        return bool(self.pillow) and (self.pillow != "AVIF" or bool(features.check("avif")))


# Only decoders with `pillow` are allowed: a PostScript file named `photo.png` must not start an interpreter.
FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"), "JPEG"),
    Format("PNG", (".png", ".apng"), "PNG"),
    Format("WEBP", (".webp",), "WEBP"),
    Format("BMP", (".bmp", ".dib"), "BMP"),
    Format("TIFF", (".tif", ".tiff"), "TIFF"),
    Format("AVIF", (".avif", ".avifs"), "AVIF", remedy="pip install a Pillow with AVIF, or convert them to PNG"),
    Format("HEIC", (".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIF", "pillow_heif", "pip install pillow-heif"),
    Format("JPEG XL", (".jxl",), "JXL", "pillow_jxl", "pip install pillow-jxl-plugin"),
    Format("JPEG 2000", (".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".jph")),
    Format("JPEG XR", (".jxr", ".wdp", ".hdp")),
    Format("camera raw", tuple(f".{suffix}" for suffix in _RAW.split())),
    Format("PNM", (".ppm", ".pgm", ".pbm", ".pnm", ".pfm")),
    Format("HDR", (".exr", ".hdr")),
    Format("Photoshop", (".psd",)),
    Format("TGA", (".tga",)),
)
_BY_NAME = {each.name: each for each in FORMATS}
_BY_SUFFIX = {suffix: each for each in FORMATS for suffix in each.suffixes}
IMAGE_SUFFIXES = tuple(_BY_SUFFIX)
"""Suffixes of files that hold an image, read or not."""


@cache
def _register(plugin: str) -> None:
    module = importlib.import_module(plugin)
    if register := getattr(module, "register_heif_opener", None):  # the plugin of JPEG XL registers itself
        register()


def suffixes() -> tuple[str, ...]:
    """The suffixes that are read here."""
    return tuple(suffix for suffix, each in _BY_SUFFIX.items() if each.read)


def decoders(start: bytes) -> list[str]:
    """Pillow's decoders for a file that begins with `start`. A plugin is imported for the first file that needs it."""
    found, usual = sniff(start), [each.pillow for each in FORMATS if each.pillow and not each.plugin]
    if found is None or not found.plugin:
        return usual
    _register(found.plugin)
    return [found.pillow]


def sniff(start: bytes) -> Format | None:
    """The format of a file that Pillow may not read, from its first 32 bytes; None for all others."""
    if start[4:8] == b"ftyp":
        brands = start[8:32]
        if brands.startswith(b"crx"):
            return _BY_NAME["camera raw"]
        if b"avif" in brands or b"avis" in brands:
            return _BY_NAME["AVIF"]
        return _BY_NAME["HEIC"] if any(brand in brands for brand in (b"hei", b"hev", b"mif1", b"msf1")) else None
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return _BY_NAME["JPEG XL"]
    if start.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return _BY_NAME["JPEG 2000"]
    return None


def unread_kinds(files: Iterable[str]) -> str:
    """The images that are not read here, counted by format, with what would read them; empty if there are none.

    Args:
        files: names; those without the suffix of an image do not count.
    """
    found = (_BY_SUFFIX.get(f".{name.lower().rpartition('.')[2]}") for name in files)
    counts = Counter(each for each in found if each and not each.read)
    return "; ".join(f"{count} {each.name} ({each.remedy})" for each, count in counts.most_common())
