"""The choice of metrics with trained weights that a sweep reports. The driver decides once and sends workers the
names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import get_args

from trainables.common.errors import InputError
from trainables.metrics import clip_iqa, musiq, st_lpips
from trainables.metrics.lpips import ensure_backbone
from trainables.metrics.names import METRICS, PYIQA, Metric, MetricUnavailableError, Perceptual
from trainables.metrics.pyiqa_metric import PyIQA
from trainables.metrics.pyiqa_names import register_pyiqa

_FIND: dict[str, Callable[[], object]] = {
    "val/st_lpips": st_lpips.weights_path,
    "val/clip_iqa": clip_iqa.weights_path,
    "val/musiq": musiq.weights_path,
}


@dataclass(frozen=True)
class MetricChoice:
    """The choice.

    Attributes:
        names: full names of the metrics to report besides those without weights; may be empty.
        notes: one line per decision that the user should know: which metric is absent, why, and how to get it.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def ensure_available(names: Iterable[str], *, allow_download: bool = True) -> None:
    """Checks that this machine has the weights of every metric in `names`.

    Args:
        names: full metric names, see `METRICS`.
        allow_download: whether the backbones of LPIPS and DISTS may be downloaded, and by pyiqa the weights of its
            metrics; no other file is. Without network a backbone takes at most 4 s.

    Raises:
        MetricUnavailableError: the weights or the package of a metric are missing; the message says how to get them.
    """
    for name in names:
        if name in ("val/lpips", "val/lpips_vgg", "val/dists"):
            ensure_backbone(allow_download, net="alex" if name == "val/lpips" else "vgg", metric=name)
        elif name.startswith(PYIQA):
            register_pyiqa([name])
            if allow_download:
                PyIQA(name)
        elif name in _FIND:
            _FIND[name]()


def resolve_metrics(
    perceptual: Perceptual = "auto", *, no_reference: bool = True, allow_download: bool = True
) -> MetricChoice:
    """Chooses all metrics with trained weights: the perceptual one, then those without a target.

    Args:
        perceptual: see `resolve_perceptual`.
        no_reference: whether to report the no-reference metrics whose weights are on this machine.
        allow_download: see `ensure_available`.

    Returns:
        The choice; one note names all absent no-reference metrics.

    Raises:
        InputError, MetricUnavailableError: see `resolve_perceptual`.
    """
    choice = resolve_perceptual(perceptual, allow_download=allow_download)
    names, absent = list(choice.names), []
    for name in (name for name, metric in METRICS.items() if no_reference and _is_without_target(metric)):
        try:
            ensure_available([name])
            names.append(name)
        except MetricUnavailableError:
            absent.append(name)
    note = f"without {' and '.join(absent)}: docs/metrics.md says how to get their weights"
    return MetricChoice(tuple(names), (*choice.notes, note) if absent else choice.notes)


def check_size(names: Iterable[str], side: int) -> None:
    """Checks that pyiqa's metrics in `names` measure images of this size: pyiqa does not say which sizes they take.

    Args:
        side: height and width, in pixels.

    Raises:
        MetricUnavailableError: see `PyIQA`.
        InputError: a metric that fails or is not finite on a random image.
    """
    for name in names:
        if name.startswith(PYIQA):
            PyIQA(name).check_size(side)


def _is_without_target(metric: Metric) -> bool:
    """Whether a sweep reports it without being asked, if its weights are there."""
    return metric.compared_with == "nothing" and not metric.name.startswith(PYIQA)


def resolve_perceptual(choice: Perceptual = "auto", *, allow_download: bool = True) -> MetricChoice:
    """Chooses the perceptual metric.

    Args:
        choice: "lpips", "lpips_vgg" or "st_lpips" for that metric, "none" for none; "auto" for LPIPS if its backbone is
            on disk or can be downloaded, else ST-LPIPS under its own name, whose weights come with its wheel.
        allow_download: see `ensure_available`.

    Raises:
        InputError: another choice.
        MetricUnavailableError: the chosen metric has no weights here.
    """
    if choice not in get_args(Perceptual):
        raise InputError.of("perceptual", choice, f"one of {', '.join(get_args(Perceptual))}")
    if choice == "none":
        return MetricChoice(names=())
    if choice != "auto":
        ensure_available([f"val/{choice}"], allow_download=allow_download)
        return MetricChoice(names=(f"val/{choice}",))
    try:
        return resolve_perceptual("lpips", allow_download=allow_download)
    except MetricUnavailableError as lpips_absent:
        try:
            names = resolve_perceptual("st_lpips").names
        except MetricUnavailableError as st_lpips_absent:
            return MetricChoice(names=(), notes=(str(lpips_absent), str(st_lpips_absent)))
        return MetricChoice(names, notes=(f"{lpips_absent}. Reporting val/st_lpips, under its own name",))
