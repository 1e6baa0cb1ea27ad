"""Metrics that compare pixels: PSNR and SSIM, over RGB and on luma. Each gives one value per image."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

# The value for identical images. Infinity would spoil every mean, and Optuna refuses it as an objective's value.
MAX_PSNR = 100.0

# Weights of R, G, B in studio-range luma (16 to 235 of 255), ITU-R BT.601; Matlab's rgb2ycbcr.
_LUMA = (65.481, 128.553, 24.966)

_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5


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
        (B,) in [-1, 1]; 1 for identical images. In float32 it is exact to about 5e-5.
    """
    return _similarity(restored, target)


def ssim_y(restored: Tensor, target: Tensor) -> Tensor:
    """Structural similarity on luma as SinSR reports it (its `batch_SSIM(ycbcr=True)`).

    The luma is that of `psnr_y`: BT.601, rounded to 8 bits, with a data range of 255 although it spans only 16 to 235.
    The parameters are those of `ssim`. Not differentiable.

    Args:
        restored, target: (B, 3, H, W) in [0, 1], H and W at least 11.

    Returns:
        (B,) in [-1, 1]; 1 for identical images. It is computed in float64: one plane costs little.
    """
    return _similarity(*(_luma_bytes(image).unsqueeze(1).double() / 255 for image in (restored, target)))


def without_border(image: Tensor, border: int) -> Tensor:
    """(B, C, H, W) without `border` pixels at each edge."""
    return image[..., border:-border, border:-border] if border else image


def _similarity(restored: Tensor, target: Tensor) -> Tensor:
    """SSIM of (B, C, H, W) images in [0, 1], averaged over channels: (B,)."""
    if restored.is_cuda:
        # By default a GPU convolves in TensorFloat-32. Its 3 digits are too few for a variance, the
        # difference of two nearly equal means.
        restored, target = restored.double(), target.double()
    _, similarity = structural_similarity_index_measure(
        restored,
        target,
        gaussian_kernel=True,
        sigma=_SSIM_SIGMA,
        data_range=1.0,
        k1=0.01,
        k2=0.03,
        reduction="none",
        return_full_image=True,
    )
    # torchmetrics' own mean also counts windows that extend over the border onto mirrored pixels.
    inside = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return similarity[..., inside, inside].mean(dim=(1, 2, 3)).float()


def _decibels(mean_squared_error: Tensor) -> Tensor:
    return -10 * torch.log10(mean_squared_error.clamp_min(10 ** (-MAX_PSNR / 10)))


def _luma_bytes(image: Tensor) -> Tensor:
    """Luma of (B, 3, H, W) images in [0, 1], rounded to whole numbers from 0 to 255: (B, H, W)."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device)
    # Not a matrix product: a GPU may compute that in TensorFloat-32, with errors of whole levels.
    return ((image * weights.view(3, 1, 1)).sum(dim=1) + 16).round()
