"""Conversion of images between files, stores and networks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_tensor(values: np.ndarray, device: torch.device) -> Tensor:
    """float32 on the device; 8-bit images are mapped to [-1, 1]."""
    tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return to_float(tensor)


def image_tensor(pixels: np.ndarray, device: torch.device) -> Tensor:
    """One picture, uint8 (H, W, 3), as (1, 3, H, W) in [-1, 1]."""
    return to_tensor(pixels.transpose(2, 0, 1)[None].copy(), device)


def to_pixels(image: Tensor) -> np.ndarray:
    """One picture, (3, H, W) in [0, 1], as uint8 (H, W, 3)."""
    pixels: np.ndarray = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def to_float(values: Tensor) -> Tensor:
    """As `to_tensor`, for a tensor on the device; always a copy."""
    copy = values.to(torch.float32, copy=True)
    return copy.div_(127.5).sub_(1) if values.dtype == torch.uint8 else copy


_PIXELS_AT_ONCE = 2**21  # 8 images of 512 px, whose activations in an autoencoder take gigabytes


def rows_at_once(size: int) -> int:
    """How many images of `size` pixels a side a frozen network takes at once."""
    return max(1, _PIXELS_AT_ONCE // size**2)


def upsample(images: Tensor, scale: int) -> Tensor:
    """Bicubic, not clamped, as ResShift encodes the degraded image: (B, 3, h, w) -> (B, 3, h * s, w * s)."""
    return F.interpolate(images, scale_factor=scale, mode="bicubic")
