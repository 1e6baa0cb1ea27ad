"""The photographs that the shipped networks are measured on: all of the sample; none trains what ships."""

from __future__ import annotations

from typing import get_args

import numpy as np
from torch import Tensor

from trainables.assets.crops import to_images
from trainables.images.sources.photographs import load_photographs
from trainables.metrics.st_lpips import STLPIPS
from trainables.settings import SAMPLE
from trainables.settings.pairs import Split


def held_out_photographs() -> dict[str, np.ndarray]:
    """Name -> uint8 (H, W, 3)."""
    found = (photograph for split in get_args(Split) for photograph in load_photographs(SAMPLE, split))
    return {photograph.name: photograph.pixels for photograph in sorted(found, key=lambda each: each.name)}


def held_out_crops(each: int, size: int = 64) -> Tensor:
    """The `each` most detailed crops of each photograph from a regular grid, (N, 3, size, size) in [-1, 1]."""
    crops = []
    for pixels in held_out_photographs().values():
        places = [
            pixels[top : top + size, left : left + size]
            for top in range(0, pixels.shape[0] - size + 1, size)
            for left in range(0, pixels.shape[1] - size + 1, size)
        ]
        crops += sorted(places, key=lambda crop: -float(crop[..., 1].std()))[:each]
    return to_images(crops)


def colour_error(restored: Tensor, target: Tensor) -> float:
    """Mean over images and channels of the difference of their means, share of the full range; (N, 3, H, W) in
    [-1, 1]."""
    return float((restored.mean((2, 3)) - target.mean((2, 3))).abs().mean() / 2)


def reconstruction(restored: Tensor, target: Tensor, perceptual: STLPIPS) -> dict[str, float]:
    """How an autoencoder gives images back: means over them; (N, 3, H, W) in [-1, 1]."""
    return {
        "psnr": mean_psnr(restored, target),
        "colour_error": colour_error(restored, target),
        "st_lpips": float(perceptual(restored.clamp(-1, 1), target).mean()),
    }


def mean_psnr(restored: Tensor, target: Tensor) -> float:
    """Mean over images, dB; (N, 3, H, W) in [-1, 1], restored is clamped."""
    errors = ((restored.clamp(-1, 1) - target) / 2).square().mean((1, 2, 3))
    return float((-10 * errors.log10()).mean())
