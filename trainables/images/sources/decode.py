"""Decoding: the bytes of an image to its size or pixels. Anything that is not clearly one photograph is refused."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from trainables.common.errors import one_line
from trainables.images.sources.colour import to_srgb
from trainables.images.sources.formats import FORMATS, decoders, sniff

MAX_PIXELS = 150_000_000  # larger images are refused: 150 megapixels take 450 MB when decoded
# Pillow would warn from 89 megapixels on, and only refuse from 179 on. `_open` refuses earlier.
Image.MAX_IMAGE_PIXELS = None
# A comment or colour profile of more than 1 MB is no reason to refuse a photograph; this is Pillow's limit for all.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
_ORIENTATION = 0x0112
# EXIF orientation -> how the stored pixels are turned to be shown.
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDTH, _HEIGHT = 256, 257  # tags of a TIFF file
_START = 32  # bytes that tell a format


def read_size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) from the header, after EXIF orientation (5 to 8 swap them).

    Raises:
        ValueError, OSError and other errors of a decoder: not one usable photograph; see `reason`.
    """
    with _open(file) as image:
        orientation = _orientation(image)
        if image.format == "TIFF":  # its `size` is already turned, but not by an orientation in its XMP
            tags = image.tag_v2  # type: ignore[attr-defined]  # every TIFF image has it
            width, height = tags[_WIDTH], tags[_HEIGHT]
        else:
            width, height = image.size
        return (width, height) if orientation >= 5 else (height, width)


def read_pixels(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3), sRGB.

    16 bits per channel are scaled to 8 (colour images by dropping the lower 8 bits). A colour profile is applied,
    transparency is dropped, EXIF orientation is applied, and of a phone's JPEG with several pictures the first is used.

    Raises:
        ValueError, OSError and other errors of a decoder: as `read_size`, or the pixels are damaged.
    """
    with _open(io.BytesIO(content)) as image:
        orientation, profile = _orientation(image), image.info.get("icc_profile")
        image.load()
        if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
            shown = Image.fromarray(np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8))
        else:
            image.info.pop("transparency", None)  # Pillow would warn about dropping it
            shown = image
        if orientation != 1 and image.format != "TIFF":  # Pillow turns TIFF images when it loads them
            shown = shown.transpose(_TURNED[orientation])
        return np.array(to_srgb(shown, profile))


def reason(error: Exception) -> str:
    """Why an image cannot be used, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(each.name for each in FORMATS if each.pillow and not each.plugin)} image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _open(file: BinaryIO) -> Image.Image:
    start = file.read(_START)
    if not start:
        raise ValueError("an empty file")
    if start.startswith(b"GIF8"):
        raise ValueError("a GIF: give its frames as PNG or JPEG files")
    # A phone's HEIC file may be named .jpg.
    if (kind := sniff(start)) and not kind.read:
        raise ValueError(f"a {kind.name} file: {kind.remedy.replace('them', 'it')}")
    file.seek(0)
    image = Image.open(file, formats=decoders(start))
    try:
        frames = getattr(image, "n_frames", 1)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"decompression bomb: {image.width} x {image.height}, over {MAX_PIXELS} pixels")
        if frames > 1 and image.format not in ("MPO", "HEIF"):
            raise ValueError(f"{frames} frames or pages: save each in its own file")
        if image.mode in ("I", "F"):
            raise ValueError(f"pixel mode {image.mode} has no defined range: give 8 or 16 bits per channel")
    except Exception:
        image.close()
        raise
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 for any other value and for damaged EXIF, which say nothing about the pixels.

    From the header alone: PNG's own `getexif` would decode all pixels.
    """
    try:
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
        return int(found) if found in _TURNED else 1
    except Exception:  # the readers of EXIF raise almost anything
        return 1
