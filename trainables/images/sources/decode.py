"""The bytes of an image as its size or its pixels; what is not clearly one photograph is refused with the reason."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainables.common.errors import one_line

# Decoders are named, not guessed from content: a PostScript file called `photo.png` must not start an
# interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 150_000_000  # a larger image is refused: 150 megapixels are 450 MB once decoded


def read_size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) from the header, after EXIF orientation (5 to 8 lie on their side).

    Raises:
        ValueError, OSError and others of a decoder: not one photograph that can be used; see `reason`.
    """
    with _open(file) as image:
        turned = _orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)


def read_pixels(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3), RGB. 16 bits a channel are scaled to 8 (in colour by dropping the lower 8), transparency is
    dropped, EXIF orientation applied, and of the several pictures in a phone's JPEG the first is taken.

    Raises:
        ValueError, OSError and others of a decoder: as `read_size`, or the pixels are damaged.
    """
    with _open(io.BytesIO(content)) as image:
        shown = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        if shown.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
            grey = np.round(np.asarray(shown).astype(np.float32) / 257).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        shown.info.pop("transparency", None)  # or Pillow warns of what is wanted here
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
        raise ValueError("a GIF, of 256 colours or moving: give its frames as PNG or JPEG files")
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    try:
        frames = getattr(image, "n_frames", 1)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"decompression bomb: {image.width} x {image.height}, over {MAX_PIXELS} pixels")
        if frames > 1 and image.format != "MPO":
            raise ValueError(f"{frames} frames or pages: give each as a file of its own")
        if image.mode in ("I", "F"):
            raise ValueError(f"pixel mode {image.mode} has no agreed range: 8 or 16 bits a channel accepted")
    except Exception:
        image.close()
        raise
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, by the header alone: PNG's own `getexif` would decode all pixels."""
    return int(Image.Image.getexif(image).get(0x0112, 1))
