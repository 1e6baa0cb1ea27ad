"""Unsharp masking of targets, as in the training of Real-ESRGAN and StableSR."""

from __future__ import annotations

import numpy as np

from trainables.images.degradations.degradation import blur

_SIDE, _SIGMA = 51, 8.0  # of the Gaussian, pixels; OpenCV's deviation for this side
_WEIGHT = 0.5
_THRESHOLD = 10.0  # a pixel is sharpened where it differs from its blurred neighbourhood by more, in levels of 255


def sharpened(target: np.ndarray) -> np.ndarray:
    """A sharper `target`, uint8 (H, W, 3): `USMSharp` of BasicSR's `basicsr/utils/img_process_util.py`.

    Half of the difference to the blurred image is added where that difference is large; the mask of these pixels is
    blurred too, so that its edge does not show.
    """
    offsets = np.arange(_SIDE) - _SIDE // 2
    line = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    image = target.astype(np.float32) / 255
    residual = image - blur(image, kernel)
    mask = blur((np.abs(residual) * 255 > _THRESHOLD).astype(np.float32), kernel)
    sharp = np.clip(image + _WEIGHT * residual, 0, 1)
    return np.clip(np.round((mask * sharp + (1 - mask) * image) * 255), 0, 255).astype(np.uint8)
