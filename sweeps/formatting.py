"""How trials, metrics and numbers are written for people: in the log, the leaderboard and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainables.metrics.names import METRICS

Row = Mapping[str, Any]

CONFIG = "config/"


def is_larger_better(metric: str, direction: str | None = None) -> bool:
    """Whether a larger value of `metric` is the better one: as `direction` ("max" or "min") says, else as the
    metric is known for.

    Raises:
        ValueError: a direction that is neither, or none for a metric that is not known.
    """
    if direction is None:
        if metric not in METRICS:
            raise ValueError(f"direction of {metric!r} is not known; known metrics: {', '.join(METRICS)}")
        direction = METRICS[metric].direction
    if direction not in ("max", "min"):
        raise ValueError(f"direction {direction!r} of {metric} is not one of max, min")
    return direction == "max"


def metric_title(metric: str) -> str:
    """The metric as papers write it.

    >>> metric_title("val/st_lpips"), metric_title("val/psnr")
    ('ST-LPIPS', 'PSNR')
    """
    return metric.removeprefix("val/").upper().replace("_", "-")


def metric_unit(metric: str) -> str:
    """What follows the number: " dB", or nothing where it has no unit."""
    return " dB" if metric in METRICS and METRICS[metric].unit == "dB" else ""


def metric_text(metric: str, value: float | None, sign: bool = False) -> str:
    """A value of a metric with the digits that mean something: hundredths of a decibel, else four decimals.

    Args:
        sign: write a + before what is not negative, as in a difference.
    """
    if value is None or math.isnan(value):
        return "–"
    digits = 2 if metric_unit(metric) else 4
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def parameters_text(count: float | None) -> str:
    """A number of parameters in millions, to three digits and at most to the thousand; nothing where it is not known.

    >>> parameters_text(532768), parameters_text(2.18e6), parameters_text(None)
    ('0.533 M', '2.18 M', '')
    """
    if count is None:
        return ""
    whole = int(count / 1e6)
    return f"{count / 1e6:.{max(0, 3 - len(str(whole))) if whole else 3}f} M"


def step_seconds(row: Row) -> float | None:
    """Seconds that a training step of a leaderboard row took; None for what trained no step."""
    seconds = row.get("step_seconds")
    return seconds if row.get("steps") and seconds is not None and seconds > 0 else None


def milliseconds_text(seconds: float | None) -> str:
    """Seconds as whole milliseconds, below ten with a decimal; nothing where they are not known."""
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.{0 if seconds >= 9.95e-3 else 1}f}"


def setting_text(value: Any) -> str:
    """A hyperparameter in three significant digits; text and whole numbers as they are."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def settings_of(row: Row) -> dict[str, Any]:
    """The hyperparameters of a leaderboard row by their dotted names; the seed is not one."""
    settings = {name.removeprefix(CONFIG): value for name, value in row.items() if name.startswith(CONFIG)}
    return {name: value for name, value in settings.items() if name.rsplit(".", 1)[-1] != "seed"}


def varied_settings(rows: Sequence[Row]) -> list[str]:
    """The dotted names of the hyperparameters that are not the same in all trials."""
    trials = [settings_of(row) for row in rows if row.get("kind") != "control"]
    names = dict.fromkeys(name for settings in trials for name in settings)
    return [name for name in names if len({repr(settings.get(name)) for settings in trials}) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of every dotted name where that is unique, else the whole name."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)}


def trial_text(row: Row, varied: Sequence[str]) -> str:
    """A trial by its id and what sets it apart, as in "t007 (inversion 0.05, ground_truth 12)"."""
    if row.get("label"):
        return f"{row['id']} ({row['label']})"
    short = short_names(varied)
    settings = settings_of(row)
    parts = [f"{short[name]} {setting_text(settings.get(name))}" for name in varied]
    return f"{row['id']} ({', '.join(parts)})" if parts else str(row["id"])


def count_text(count: int, singular: str, plural: str | None = None) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
