"""Colour correction after decoding: the colours of one image with the details of another.

Diffusion in latents shifts colours. StableSR (Wang et al., "Exploiting Diffusion Prior for Real-World Image
Super-Resolution", IJCV 2024; `scripts/wavelet_color_fix.py` of its code) takes the colours from the degraded image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.images.tensors import upsample

_WAVELET_LEVELS = 5  # blurs with dilations 1, 2, 4, 8, 16; coarser structure counts as colour


def match_colour(restored: Tensor, reference: Tensor, kind: Literal["adain", "wavelet"]) -> Tensor:
    """`restored` with the colours of `reference`, both `(B, C, H, W)`; not clamped.

    Args:
        restored: images of any range; StableSR corrects in [-1, 1].
        reference: images of the same shape with the right colours: the degraded ones, at the restored size.
        kind: `adain` sets every channel's mean and standard deviation to the reference's (adaptive instance
            normalisation, Huang & Belongie, ICCV 2017); `wavelet` replaces the lowest frequencies.

    Raises:
        ValueError: another `kind`, or images of different shapes.
    """
    if restored.shape != reference.shape:
        raise ValueError(f"restored is {tuple(restored.shape)}, reference {tuple(reference.shape)}; give equal shapes")
    if kind == "adain":
        mean, std = _channel_statistics(restored)
        target_mean, target_std = _channel_statistics(reference)
        return (restored - mean) / std * target_std + target_mean
    if kind == "wavelet":
        return restored + _lowest_frequencies(reference - restored)  # the decomposition is linear
    raise ValueError(f"kind={kind!r} is not accepted: give adain or wavelet")


def with_degraded_colours(
    restored: Tensor, degraded: Tensor, scale: int, kind: Literal["none", "adain", "wavelet"]
) -> Tensor:
    """Restored images with the colours of the degraded ones, corrected as in StableSR; "none" changes nothing.

    Args:
        restored: (B, C, H, W), nominally in [0, 1], as the result.
        degraded: (B, C, H / scale, W / scale) in [-1, 1].
    """
    if kind == "none":
        return restored
    return match_colour(restored * 2 - 1, upsample(degraded, scale), kind) * 0.5 + 0.5


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(images, dim=(2, 3), keepdim=True)
    return mean, (variance + 1e-5).sqrt()


def _lowest_frequencies(images: Tensor) -> Tensor:
    """The residue of an undecimated ("à trous") wavelet decomposition with the 3x3 binomial filter."""
    channels = images.shape[1]
    taps = images.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(taps, taps).expand(channels, 1, 3, 3)
    for level in range(_WAVELET_LEVELS):
        dilation = 2**level
        padded = F.pad(images, (dilation,) * 4, mode="replicate")
        images = F.conv2d(padded, kernel, groups=channels, dilation=dilation)
    return images
