"""Which perceptual metric a sweep reports: decided once, on the driver; workers are given the names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from trainables.errors import InputError
from trainables.metrics.lpips import ensure_backbone
from trainables.metrics.names import MetricUnavailableError
from trainables.metrics.st_lpips import weights_path

Perceptual = Literal["auto", "lpips", "st_lpips", "none"]


@dataclass(frozen=True)
class PerceptualChoice:
    """The decision.

    Attributes:
        names: full names of the perceptual metrics to report, possibly none.
        notes: a line for each metric that is absent though wanted: why, and how to get it.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def resolve_perceptual(choice: Perceptual = "auto", *, allow_download: bool = True) -> PerceptualChoice:
    """Decide on the perceptual metric.

    Args:
        choice: "lpips" or "st_lpips" for that one, "none" for none; "auto" for LPIPS if its backbone is on
            disk or can be downloaded, else ST-LPIPS, whose weights come with its wheel, under its own name.
        allow_download: whether to try to download LPIPS' backbone; without network that takes 4 s at most.

    Raises:
        InputError: another choice.
        MetricUnavailableError: the metric chosen by name cannot be had.
    """
    if choice not in get_args(Perceptual):
        raise InputError.of("perceptual", choice, f"one of {', '.join(get_args(Perceptual))}")
    if choice == "none":
        return PerceptualChoice(names=())
    if choice == "st_lpips":
        weights_path()
        return PerceptualChoice(names=("val/st_lpips",))
    try:
        ensure_backbone(allow_download)
        return PerceptualChoice(names=("val/lpips",))
    except MetricUnavailableError as lpips_absent:
        if choice == "lpips":
            raise
        try:
            weights_path()
        except MetricUnavailableError as st_lpips_absent:
            return PerceptualChoice(names=(), notes=(str(lpips_absent), str(st_lpips_absent)))
        return PerceptualChoice(
            names=("val/st_lpips",), notes=(f"{lpips_absent}. Reporting val/st_lpips, under its own name",)
        )
