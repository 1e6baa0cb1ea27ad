"""Metrics that compare pixels: PSNR and SSIM, over RGB and on luma. Each gives one value per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The value for identical images. Infinity would spoil every mean, and Optuna refuses it as an objective's value.
MAX_PSNR = 100.0

# Weights of R, G, B in studio-range luma (16 to 235 of 255), ITU-R BT.601; Matlab's rgb2ycbcr.
_LUMA = (65.481, 128.553, 24.966)

_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5  # of the Gaussian window, pixels
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2  # (K1 x data range)^2 and (K2 x data range)^2


def psnr(restored: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over RGB, without rounding to 8 bits.

    Args:
        restored, target: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) dB, at most `MAX_PSNR`.
    """
    return _decibels((restored - target).square().mean(dim=(1, 2, 3)))


def psnr_y(restored: Tensor, target: Tensor) -> Tensor:
    """PSNR on luma as SinSR reports it (its `batch_PSNR(ycbcr=True)`).

    The BT.601 luma of the unrounded RGB is rounded to 8 bits; the peak is 255, although such luma spans only
    16 to 235. Not differentiable.

    Args:
        restored, target: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) dB, at most `MAX_PSNR`.
    """
    return _decibels(((_luma_bytes(restored) - _luma_bytes(target)) / 255).square().mean(dim=(1, 2)))


def ssim(restored: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, the mean over RGB (Wang et al. 2004, with its parameters).

    Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, population covariance,
    averaged over the positions where the whole window is inside the image.

    Args:
        restored, target: (B, 3, H, W) in [0, 1], H and W at least 11.

    Returns:
        (B,) in [-1, 1]; 1 for identical images. Computed in float64.
    """
    return _similarity(restored, target)


def ssim_y(restored: Tensor, target: Tensor) -> Tensor:
    """Structural similarity on luma as SinSR reports it (its `batch_SSIM(ycbcr=True)`).

    The luma is that of `psnr_y`: BT.601, rounded to 8 bits, with a data range of 255 although it spans only 16 to 235.
    The parameters are those of `ssim`. Not differentiable.

    Args:
        restored, target: (B, 3, H, W) in [0, 1], H and W at least 11.

    Returns:
        (B,) in [-1, 1]; 1 for identical images. Computed in float64.
    """
    return _similarity(*(_luma_bytes(image).unsqueeze(1).double() / 255 for image in (restored, target)))


def without_border(image: Tensor, border: int) -> Tensor:
    """(B, C, H, W) without `border` pixels at each edge."""
    return image[..., border:-border, border:-border] if border else image


def _similarity(restored: Tensor, target: Tensor) -> Tensor:
    """SSIM of (B, C, H, W) images in [0, 1], averaged over channels: (B,).

    In float64: a variance is the difference of two nearly equal means, for which float32 has too few digits, and
    TensorFloat-32 on a GPU far too few. torchmetrics gives the same values in float64, but takes 30 to 100 times as
    long on a CPU (`benchmarks/ssim.py`), a third of a validation.
    """
    x, y = restored.double(), target.double()
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    luminance = (2 * product + _SSIM_C1) / (squares + _SSIM_C1)
    structure = (2 * (mean_xy - product) + _SSIM_C2) / (mean_xx + mean_yy - squares + _SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


def _window_means(maps: Tensor) -> Tensor:
    """Gaussian means at the positions where the whole window is inside: (..., H, W) -> (..., H - 10, W - 10).

    A weighted sum of shifted maps, first along one axis, then along the other: faster than a convolution in float64.
    """
    window = [math.exp(-0.5 * (k / _SSIM_SIGMA) ** 2) for k in range(-_SSIM_RADIUS, _SSIM_RADIUS + 1)]
    weights = [value / math.fsum(window) for value in window]
    for axis in (-2, -1):
        count = maps.shape[axis] - 2 * _SSIM_RADIUS
        means = maps.narrow(axis, 0, count) * weights[0]
        for start, weight in enumerate(weights[1:], 1):
            means.add_(maps.narrow(axis, start, count), alpha=weight)
        maps = means
    return maps


def _decibels(mean_squared_error: Tensor) -> Tensor:
    return -10 * torch.log10(mean_squared_error.clamp_min(10 ** (-MAX_PSNR / 10)))


def _luma_bytes(image: Tensor) -> Tensor:
    """Luma of (B, 3, H, W) images in [0, 1], rounded to whole numbers from 0 to 255: (B, H, W)."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device)
    # Not a matrix product: a GPU may compute that in TensorFloat-32, with errors of whole levels.
    return ((image * weights.view(3, 1, 1)).sum(dim=1) + 16).round()
