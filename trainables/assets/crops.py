"""Random training crops: of photographs at various scales, some with a cut-out pasted in, mirrored, recoloured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from trainables.assets.build_photographs import load
from trainables.images.tensors import to_tensor

BLUR = (0.7, 4.0)  # standard deviation, pixels
SMALLEST_SCALE = 0.3  # a crop shows a photograph reduced to between this and its own size


@dataclass(frozen=True)
class CropSettings:
    """How crops vary. All are probabilities, except `tries`.

    Attributes:
        cut_out: a cut-out is pasted in.
        plain: the background of a cut-out is a gradient of two random colours instead of a photograph.
        swap_channels: red, green and blue are exchanged at random.
        tone: contrast and brightness change.
        blur: the crop is out of focus. Photographs that were reduced in size rarely are.
        tries: positions that are looked at; the most detailed one is kept.
    """

    cut_out: float = 0.3
    plain: float = 0.3
    swap_channels: float = 0.2
    tone: float = 0.3
    blur: float = 0.0
    tries: int = 2


class Crops:
    """Draws crops of any size. The same generator state gives the same crop."""

    def __init__(
        self, photographs: Sequence[Image.Image], cut_outs: Sequence[Image.Image], settings: CropSettings
    ) -> None:
        self._photographs, self._cut_outs, self._settings = photographs, cut_outs, settings

    @classmethod
    def from_cache(cls, cache: Path, settings: CropSettings | None = None) -> Crops:
        return cls(load(cache, "photograph"), load(cache, "cut-out"), settings or CropSettings())

    def batch(self, count: int, height: int, width: int, rng: np.random.Generator) -> Tensor:
        """(count, 3, height, width) in [-1, 1]."""
        return to_images([self.draw(height, width, rng) for _ in range(count)])

    def draw(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """uint8 (height, width, 3)."""
        settings = self._settings
        cut_out = len(self._cut_outs) > 0 and rng.random() < settings.cut_out
        if cut_out and rng.random() < settings.plain:
            image = _gradient(height, width, rng)
        else:
            image = max((self._part(height, width, rng) for _ in range(settings.tries)), key=_detail)
        if cut_out:
            _paste(image, self._cut_outs[int(rng.integers(len(self._cut_outs)))], rng)
        if settings.blur and rng.random() < settings.blur:
            image = image.filter(ImageFilter.GaussianBlur(float(np.exp(rng.uniform(*np.log(BLUR))))))
        pixels = np.asarray(image)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if height == width and rng.random() < 0.25:
            pixels = pixels.transpose(1, 0, 2)
        if rng.random() < settings.swap_channels:
            pixels = pixels[..., rng.permutation(3)]
        if rng.random() < settings.tone:
            changed = pixels * rng.uniform(0.6, 1.3) + rng.uniform(-40, 60)
            pixels = np.clip(changed, 0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels)

    def _part(self, height: int, width: int, rng: np.random.Generator) -> Image.Image:
        photograph = self._photographs[int(rng.integers(len(self._photographs)))]
        least = max(SMALLEST_SCALE, height / photograph.height, width / photograph.width)
        scale = min(1.0, float(np.exp(rng.uniform(np.log(min(least, 1.0)), 0.0))))
        tall, wide = height / scale, width / scale
        top, left = rng.uniform(0, photograph.height - tall), rng.uniform(0, photograph.width - wide)
        if scale > 0.97:  # whole pixels, not resampled
            top, left = int(top), int(left)
            return photograph.crop((left, top, left + width, top + height))
        return photograph.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + wide, top + tall))


def to_images(pixels: Sequence[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) each -> (N, 3, H, W) in [-1, 1]."""
    return to_tensor(np.stack(pixels).transpose(0, 3, 1, 2), torch.device("cpu")).contiguous()


def batch_pixels(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [-1, 1] -> uint8 (N, H, W, 3)."""
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _detail(image: Image.Image) -> float:
    return float(np.asarray(image)[::2, ::2, 1].std())


def _gradient(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    ends = rng.uniform(0, 255, (2, 3))
    slope = np.add.outer(np.linspace(0, rng.uniform(0, 1), height), np.linspace(0, rng.uniform(0, 1), width))
    mix = np.clip(slope, 0, 1)[..., None]
    return Image.fromarray((ends[0] * (1 - mix) + ends[1] * mix).astype(np.uint8))


def _paste(image: Image.Image, cut_out: Image.Image, rng: np.random.Generator) -> None:
    """Somewhere inside, so large that mostly only a part of it is seen, never enlarged."""
    longest = max(image.size)
    scale = min(1.0, longest * rng.uniform(0.6, 3.0) / max(cut_out.size))
    small = cut_out.resize(
        (max(1, round(cut_out.width * scale)), max(1, round(cut_out.height * scale))), Image.Resampling.BOX
    )
    left, top = (int(rng.uniform(-0.6 * s, i - 0.4 * s)) for s, i in zip(small.size, image.size, strict=True))
    image.paste(small, (left, top), small)
