"""Pictures of a validation or test that a trial keeps: input | output | target of each image, as one PNG per split.

validation.png, test.png    one row per image; the names of the images are in the file
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PICTURES = {"validation": "validation.png", "test": "test.png"}
"""Split -> name of its file, in the folder of a checkpoint or of a control."""
MOST_IMAGES, MOST_PIXELS = 64, 2**21  # of targets: 64 images of 181 pixels, or 8 of 512
MOST_DECODED = 250_000_000
"""Pixels of a file that is read: four rows of 4,096 pixels square have 201 million. Decoded they take 750 MB."""
_NAMES = "images"
_FAST = 3  # compression, as fast as 1; the default takes half as long again and saves 6 %


@dataclass(frozen=True)
class Pictures:
    """Attributes:
    images: names of the images.
    rows: (K, H, 3 W, 3) uint8, input | output | target. The input is enlarged to the size of the target.
    """

    images: list[str]
    rows: np.ndarray

    def write(self, path: Path) -> None:
        names = PngInfo()
        names.add_itxt(_NAMES, json.dumps(self.images))
        count, height, width, channels = self.rows.shape
        picture = Image.fromarray(self.rows.reshape(count * height, width, channels))
        picture.save(path, "png", pnginfo=names, compress_level=_FAST)

    @classmethod
    def read(cls, path: Path) -> Pictures:
        """What `write` wrote.

        Raises:
            OSError, ValueError: a damaged file, one of another program, or one with too many pixels.
        """
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode != "RGB" or picture.width * picture.height > MOST_DECODED:
                raise ValueError(f"{path}: {picture.mode}, {picture.width} x {picture.height}; no pictures of a trial")
            pixels = np.asarray(picture)
            names = json.loads(getattr(picture, "text", {}).get(_NAMES, "[]"))
        if not isinstance(names, list) or not names or len(pixels) % len(names):
            raise ValueError(f"{path}: no pictures of a trial")
        return cls(names, pixels.reshape(len(names), -1, *pixels.shape[1:]))


def kept_rows(count: int, height: int, width: int) -> list[int]:
    """The rows of a split whose pictures are kept: all, or evenly spaced ones if they are many or large."""
    kept = min(count, MOST_IMAGES, max(4, MOST_PIXELS // (height * width)))
    return sorted(set(evenly_spaced(count, kept)))


def evenly_spaced(count: int, chosen: int) -> list[int]:
    """That many of `range(count)`, with both ends; fewer are repeated."""
    return np.linspace(0, count - 1, chosen).round().astype(int).tolist()
