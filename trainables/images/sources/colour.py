"""Colour profiles: the pixels of an image as sRGB, which networks and metrics expect."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_LEVELS = 9  # per channel, of the colours on which a profile is compared with sRGB
_ROUNDING = 2  # levels of 255: profiles of sRGB differ by as much
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode of an image -> colour space of its profile


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in mode RGB, with sRGB colours.

    An image without a profile is taken for sRGB, as browsers do; so is one whose profile is damaged or belongs to
    another kind of image. Transparency is dropped. Rendering is relative colorimetric with black point compensation.
    """
    if not profile:
        return image.convert("RGB")
    mode = {"LA": "L", "La": "L"}.get(image.mode, image.mode if image.mode in _SPACES else "RGB")
    transform = _transform(profile, mode)
    if transform is None:
        return image.convert("RGB")
    return ImageCms.applyTransform(image.convert(mode), transform) or image


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """The conversion from a profile; None if it changes nothing or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        bands = len(mode) if mode != "L" else 1
        grid = np.rint(np.indices((_LEVELS,) * bands).reshape(bands, -1).T * (255 / (_LEVELS - 1))).astype(np.uint8)
        colours = Image.frombytes(mode, (len(grid), 1), grid.tobytes())
        seen = ImageCms.applyTransform(colours, transform)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None
    plain = np.asarray(colours.convert("RGB"), np.int16)
    return transform if np.abs(np.asarray(seen, np.int16) - plain).max() > _ROUNDING else None
