"""Images between files, stores and networks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_tensor(values: np.ndarray, device: torch.device) -> Tensor:
    """float32 on the device; 8-bit images become [-1, 1]."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.float().div_(127.5).sub_(1) if tensor.dtype == torch.uint8 else tensor.float()


def upsample(images: Tensor, scale: int) -> Tensor:
    """Bicubic, without clamping, as ResShift encodes the degraded image: (B, 3, h, w) -> (B, 3, h * s, w * s)."""
    return F.interpolate(images, scale_factor=scale, mode="bicubic")
