"""Validation metrics: PSNR, luma PSNR, SSIM, LPIPS and shift-tolerant LPIPS, one value an image.

Importing this package loads no torch, so that names can be checked before anything heavy: what computes is
imported when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trainables.metrics.names import METRICS, Metric, MetricUnavailableError, check_names

if TYPE_CHECKING:
    from trainables.metrics.lpips import LPIPS
    from trainables.metrics.metric_set import MetricSet
    from trainables.metrics.perceptual import PerceptualChoice, resolve_perceptual
    from trainables.metrics.pixel import MAX_PSNR, psnr, psnr_y, ssim
    from trainables.metrics.st_lpips import STLPIPS

_HOME = {
    "LPIPS": "lpips",
    "MAX_PSNR": "pixel",
    "MetricSet": "metric_set",
    "PerceptualChoice": "perceptual",
    "STLPIPS": "st_lpips",
    "psnr": "pixel",
    "psnr_y": "pixel",
    "resolve_perceptual": "perceptual",
    "ssim": "pixel",
}

__all__ = [
    "LPIPS",
    "MAX_PSNR",
    "METRICS",
    "STLPIPS",
    "Metric",
    "MetricSet",
    "MetricUnavailableError",
    "PerceptualChoice",
    "check_names",
    "psnr",
    "psnr_y",
    "resolve_perceptual",
    "ssim",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
