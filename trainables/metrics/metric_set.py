"""The metrics of one validation pass, computed on the same clamped images, one value per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from trainables.common.errors import InputError
from trainables.metrics.choice import ensure_available
from trainables.metrics.clip_iqa import CLIPIQA
from trainables.metrics.dists import DISTS
from trainables.metrics.lpips import LPIPS
from trainables.metrics.musiq import MUSIQ
from trainables.metrics.names import METRICS, PYIQA, check_names, least_side
from trainables.metrics.pixel import psnr, psnr_y, ssim, ssim_y, without_border
from trainables.metrics.pyiqa_metric import PyIQA
from trainables.metrics.pyiqa_names import register_pyiqa
from trainables.metrics.st_lpips import STLPIPS

_PIXEL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "val/psnr": psnr,
    "val/psnr_y": psnr_y,
    "val/ssim": ssim,
    "val/ssim_y": ssim_y,
}
_DEEP: dict[str, Callable[[], nn.Module]] = {
    "val/lpips": LPIPS,
    "val/lpips_vgg": partial(LPIPS, "vgg"),
    "val/st_lpips": STLPIPS,
    "val/dists": DISTS,
    "val/clip_iqa": CLIPIQA,
    "val/musiq": MUSIQ,
}

# How far a target may leave [0, 1] (through resampling and conversions) before its range is refused.
_RANGE_TOLERANCE = 1e-3


class MetricSet:
    """Computes the metrics in `names` for batches of image pairs, in float32 and without gradients.

    >>> metrics = MetricSet(["val/psnr", "val/ssim"])
    >>> image = torch.zeros(2, 3, 16, 16)
    >>> metrics(image + 0.1, image)["val/psnr"]
    tensor([20., 20.])

    Args:
        names: full names of metrics of one restoration, see `METRICS`.
        device: where the networks are and the metrics are computed.
        border: pixels that the metrics of pixels leave out at each edge. Others see whole images.

    Raises:
        InputError: an unknown or repeated name, or a metric that compares seeds.
        MetricUnavailableError: the weights or the package of a metric in `names` are not on this machine.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu", border: int = 0) -> None:
        register_pyiqa(names)
        self.names = check_names(names)
        self.border = border
        if several := [name for name in self.names if METRICS[name].compared_with == "other seeds"]:
            raise InputError.of("metrics", several, "metrics of one restoration")
        self.device = torch.device(device)
        self.min_side = least_side(self.names, border)
        self.networks_of = {name: _network(name).to(self.device) for name in self.names if name not in _PIXEL}

    @torch.no_grad()
    def __call__(self, restored: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Measures each restored image, with its target or without.

        Args:
            restored: (B, 3, H, W) RGB images, nominally in [0, 1]; clamped to it.
            target: (B, 3, H, W) RGB images in [0, 1].

        Returns:
            name -> (B,) float32 values on `device`, in the order of `names`; NaN for an image that contains NaN.

        Raises:
            ValueError: shapes differ, are not (B, 3, H, W) or too small, or the target leaves [0, 1].
        """
        self._check(restored, target)
        restored = restored.to(self.device, torch.float32).clamp(0, 1)
        target = target.to(self.device, torch.float32)
        with torch.autocast(self.device.type, enabled=False):
            return {name: self._compute(name, restored, target) for name in self.names}

    def _compute(self, name: str, restored: Tensor, target: Tensor) -> Tensor:
        if name in _PIXEL:
            return _PIXEL[name](without_border(restored, self.border), without_border(target, self.border))
        if name.startswith(PYIQA):
            return self.networks_of[name](restored, target)
        if METRICS[name].compared_with == "nothing":
            return self.networks_of[name](restored)
        return self.networks_of[name](2 * restored - 1, 2 * target - 1)

    def _check(self, restored: Tensor, target: Tensor) -> None:
        shape = target.shape
        if restored.shape != shape or len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < self.min_side:
            raise ValueError(
                f"restored {tuple(restored.shape)} and target {tuple(shape)}: "
                f"accepted are two of (B, 3, H, W) with H, W >= {self.min_side}"
            )
        low, high = (value.item() for value in target.aminmax())
        if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
            raise ValueError(f"target spans [{low:.4g}, {high:.4g}]: accepted are images in [0, 1]")


def _network(name: str) -> nn.Module:
    return PyIQA(name) if name.startswith(PYIQA) else _DEEP[name]()


def build_metrics(names: Sequence[str], device: torch.device | str = "cpu", border: int = 0) -> MetricSet:
    """A `MetricSet`. First downloads missing weights to this machine, because the driver did so only for its own.

    Raises:
        InputError: an unknown or repeated name, or a metric that compares seeds.
        MetricUnavailableError: the weights of a metric in `names` are not on this machine and cannot be downloaded.
    """
    register_pyiqa(names)
    ensure_available(check_names(names))
    return MetricSet(names, device, border)
