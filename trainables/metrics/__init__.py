"""Validation metrics, one value per image: with a target, without one, and over several restorations of one image.

Importing this package does not import torch, so that names can be checked quickly. The modules that compute are
imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trainables.metrics.names import METRICS, Metric, MetricUnavailableError, check_names

if TYPE_CHECKING:
    from trainables.metrics.choice import (
        MetricChoice,
        check_size,
        ensure_available,
        resolve_metrics,
        resolve_perceptual,
    )
    from trainables.metrics.clip_iqa import CLIPIQA
    from trainables.metrics.dists import DISTS
    from trainables.metrics.lpips import LPIPS
    from trainables.metrics.metric_set import MetricSet, build_metrics
    from trainables.metrics.musiq import MUSIQ
    from trainables.metrics.pixel import MAX_PSNR, psnr, psnr_y, ssim, ssim_y
    from trainables.metrics.pyiqa_metric import PyIQA
    from trainables.metrics.st_lpips import STLPIPS
    from trainables.metrics.stability import global_std, local_std, measure_stability

_HOME = {
    "CLIPIQA": "clip_iqa",
    "DISTS": "dists",
    "LPIPS": "lpips",
    "MAX_PSNR": "pixel",
    "MUSIQ": "musiq",
    "MetricChoice": "choice",
    "MetricSet": "metric_set",
    "PyIQA": "pyiqa_metric",
    "STLPIPS": "st_lpips",
    "build_metrics": "metric_set",
    "check_size": "choice",
    "ensure_available": "choice",
    "global_std": "stability",
    "local_std": "stability",
    "measure_stability": "stability",
    "psnr": "pixel",
    "psnr_y": "pixel",
    "resolve_metrics": "choice",
    "resolve_perceptual": "choice",
    "ssim": "pixel",
    "ssim_y": "pixel",
}

__all__ = [
    "CLIPIQA",
    "DISTS",
    "LPIPS",
    "MAX_PSNR",
    "METRICS",
    "MUSIQ",
    "STLPIPS",
    "Metric",
    "MetricChoice",
    "MetricSet",
    "MetricUnavailableError",
    "PyIQA",
    "build_metrics",
    "check_names",
    "check_size",
    "ensure_available",
    "global_std",
    "local_std",
    "measure_stability",
    "psnr",
    "psnr_y",
    "resolve_metrics",
    "resolve_perceptual",
    "ssim",
    "ssim_y",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
