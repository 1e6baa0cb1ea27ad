"""Decoding: the bytes of an image to its size or pixels. Anything that is not clearly one photograph is refused."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainables.common.errors import one_line

# Only these decoders are allowed: a PostScript file named `photo.png` must not start an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 150_000_000  # larger images are refused: 150 megapixels take 450 MB when decoded


def read_size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) from the header, after EXIF orientation (5 to 8 swap them).

    Raises:
        ValueError, OSError and other errors of a decoder: not one usable photograph; see `reason`.
    """
    with _open(file) as image:
        turned = _orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def read_pixels(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3), RGB.

    16 bits per channel are scaled to 8 (colour images by dropping the lower 8 bits). Transparency is dropped, EXIF
    orientation is applied, and of a phone's JPEG with several pictures the first is used.

    Raises:
        ValueError, OSError and other errors of a decoder: as `read_size`, or the pixels are damaged.
    """
    with _open(io.BytesIO(content)) as image:
        shown = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        if shown.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
            grey = np.round(np.asarray(shown).astype(np.float32) / 257).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        shown.info.pop("transparency", None)  # Pillow would warn about dropping it
        return np.array(shown.convert("RGB"))


def reason(error: Exception) -> str:
    """Why an image cannot be used, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(FORMATS)} image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def _open(file: BinaryIO) -> Image.Image:
    start = file.read(4)
    if not start:
        raise ValueError("an empty file")
    if start == b"GIF8":
        raise ValueError("a GIF: give its frames as PNG or JPEG files")
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    try:
        frames = getattr(image, "n_frames", 1)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"decompression bomb: {image.width} x {image.height}, over {MAX_PIXELS} pixels")
        if frames > 1 and image.format != "MPO":
            raise ValueError(f"{frames} frames or pages: save each in its own file")
        if image.mode in ("I", "F"):
            raise ValueError(f"pixel mode {image.mode} has no defined range: give 8 or 16 bits per channel")
    except Exception:
        image.close()
        raise
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, from the header alone: PNG's own `getexif` would decode all pixels."""
    return int(Image.Image.getexif(image).get(0x0112, 1))
