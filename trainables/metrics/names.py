"""The names of the validation metrics and their meaning. Imports nothing heavy: the command line reads it.

A name has one meaning everywhere: in a search space's objective, a leaderboard column, a TensorBoard tag. A metric
without weights is left out; no other metric is reported under its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainables.common.errors import InputError

PYIQA = "val/pyiqa_"
"""Beginning of the names of pyiqa's metrics: "val/pyiqa_niqe" is its "niqe"."""

Perceptual = Literal["auto", "lpips", "lpips_vgg", "st_lpips", "none"]
"""The perceptual metric that a sweep reports: `auto` is LPIPS if its weights are found, else ST-LPIPS."""


class MetricUnavailableError(InputError):
    """A metric whose weights or package are not on this machine; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Metric:
    """The meaning of a metric name.

    Attributes:
        name: full name, as in reports and leaderboards.
        direction: whether a larger ("max") or a smaller ("min") value is better.
        unit: "dB", or "1" for a dimensionless number.
        perceptual: whether it compares deep features with the target's, and so needs trained weights.
        min_side: smallest accepted height and width of images, in pixels.
        description: one line for tables and reports.
        compared_with: what a restored image is compared with: its target, nothing (no-reference metrics, which
            need trained weights too), or restorations of the same input from other noise (stability).
    """

    name: str
    direction: Literal["max", "min"]
    unit: str
    perceptual: bool
    min_side: int
    description: str
    compared_with: Literal["target", "nothing", "other seeds"] = "target"


def test_name(name: str) -> str:
    """The name of a validation metric on the test images: "val/psnr" -> "test/psnr"."""
    return name.replace("val/", "test/", 1)


def validation_name(name: str) -> str:
    """The name under which a test metric is registered: "test/psnr" -> "val/psnr"."""
    return name.replace("test/", "val/", 1)


def global_std_name(name: str) -> str:
    """The name of a metric's G-STD: "val/psnr" -> "val/g_std_psnr"."""
    return name.replace("val/", "val/g_std_", 1)


_OF_ONE_RESTORATION = (
    Metric("val/psnr", "max", "dB", False, 1, "PSNR over RGB, images in [0, 1]"),
    Metric("val/psnr_y", "max", "dB", False, 1, "PSNR on 8-bit BT.601 luma, as SinSR reports it"),
    Metric("val/ssim", "max", "1", False, 11, "SSIM (Wang 2004) over RGB, 11-pixel Gaussian window"),
    Metric("val/ssim_y", "max", "1", False, 11, "SSIM (Wang 2004) on 8-bit BT.601 luma, as SinSR reports it"),
    Metric("val/lpips", "min", "1", True, 31, "LPIPS (Zhang 2018), AlexNet, version 0.1"),
    Metric("val/lpips_vgg", "min", "1", True, 16, "LPIPS (Zhang 2018), VGG-16, version 0.1"),
    Metric("val/st_lpips", "min", "1", True, 21, "Shift-tolerant LPIPS (Ghildyal 2022), AlexNet"),
    Metric("val/dists", "min", "1", True, 1, "DISTS (Ding 2020), VGG-16"),
    Metric("val/clip_iqa", "max", "1", False, 31, "CLIP-IQA (Wang 2023), ResNet-50, Good/Bad photo.", "nothing"),
    Metric("val/musiq", "max", "1", False, 1, "MUSIQ (Ke 2021), trained on KonIQ-10k", "nothing"),
)


def _global_std(metric: Metric) -> Metric:
    description = f"G-STD (Sun 2024): deviation of {metric.name} over seeds"
    name = global_std_name(metric.name)
    return Metric(name, "min", metric.unit, False, metric.min_side, description, "other seeds")


_OF_SEVERAL = (
    Metric("val/l_std", "min", "1", False, 1, "L-STD (Sun 2024): deviation of pixels over seeds", "other seeds"),
    *map(_global_std, _OF_ONE_RESTORATION),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_OF_ONE_RESTORATION, *_OF_SEVERAL)}
"""Every known metric. Metrics of pyiqa are added when a sweep or a run names them, see `register`."""

OF_PIXELS = ("val/psnr", "val/psnr_y", "val/ssim", "val/ssim_y")
"""The metrics that compare pixels. They need no weights, and leave out the border (`metrics.border`)."""


def register(name: str, direction: Literal["max", "min"], compared_with: Literal["target", "nothing"]) -> None:
    """Adds a metric of pyiqa, "val/pyiqa_niqe", and its G-STD to `METRICS`."""
    metric = Metric(name, direction, "1", False, 1, f"{name.removeprefix(PYIQA)} of pyiqa", compared_with)
    METRICS.update({metric.name: metric, global_std_name(name): _global_std(metric)})


def least_side(names: Iterable[str], border: int = 0) -> int:
    """The smallest side of images, in pixels, that all of these metrics accept.

    Args:
        border: pixels that the metrics of pixels leave out at each edge.
    """
    return max((METRICS[name].min_side + 2 * border * (name in OF_PIXELS) for name in names), default=1)


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns `names` as a tuple; raises InputError for unknown or repeated ones."""
    names = tuple(names)
    if unknown := [name for name in names if name not in METRICS]:
        raise InputError.of("metrics", unknown, f"any of {', '.join(METRICS)}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError.of("metrics", repeated, "each name once")
    return names
