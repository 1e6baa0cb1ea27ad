"""Text of trials, metrics and numbers, for the log, the leaderboard and the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables.metrics.names import METRICS, validation_name

Row = Mapping[str, Any]

CONFIG = "config/"


def is_larger_better(metric: str, direction: str | None = None) -> bool:
    """Whether a larger value of `metric` is better: by `direction` ("max" or "min"), or by the metric's own direction.

    Raises:
        ValueError: another direction, or no direction for an unknown metric.
    """
    if direction is None:
        known = METRICS.get(validation_name(metric))
        if known is None:
            raise ValueError(f"direction of {metric!r} is not known; known metrics: {', '.join(METRICS)}")
        direction = known.direction
    if direction not in ("max", "min"):
        raise ValueError(f"direction {direction!r} of {metric} is not one of max, min")
    return direction == "max"


def metric_title(metric: str) -> str:
    """The metric as papers write it.

    >>> metric_title("val/st_lpips"), metric_title("val/psnr"), metric_title("test/psnr")
    ('ST-LPIPS', 'PSNR', 'test PSNR')
    """
    split, _, name = metric.rpartition("/")
    return f"{'test ' if split == 'test' else ''}{name.upper().replace('_', '-')}"


def metric_unit(metric: str) -> str:
    """The unit after a value: " dB", or "" if the metric has no unit."""
    known = METRICS.get(validation_name(metric))
    return " dB" if known and known.unit == "dB" else ""


def metric_text(metric: str, value: float | None, sign: bool = False) -> str:
    """A value of a metric with its significant digits: two decimals for dB, else four; "–" if there is no value.

    Args:
        sign: write a + before values that are not negative, as in a difference.
    """
    if value is None or math.isnan(value):
        return "–"
    digits = 2 if metric_unit(metric) else 4
    value = round(value, digits) + 0.0  # no minus before a zero
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def parameters_text(count: float | None) -> str:
    """A number of parameters in millions, with three digits and at most three decimals; "" if unknown.

    >>> parameters_text(532768), parameters_text(2.18e6), parameters_text(None)
    ('0.533 M', '2.18 M', '')
    """
    if count is None:
        return ""
    whole = int(count / 1e6)
    return f"{count / 1e6:.{max(0, 3 - len(str(whole))) if whole else 3}f} M"


def measured_step(row: Row) -> int:
    """The step that the values of a leaderboard row and its kept weights belong to: the best one if its trial keeps
    that (`training.keep=best`), else the last.
    """
    best = row.get("best_step")
    return int(row.get("steps") or 0 if best is None else best)


def step_seconds(row: Row) -> float | None:
    """Seconds per training step of a leaderboard row; None if it has no training steps."""
    seconds = row.get("step_seconds")
    return seconds if row.get("steps") and seconds is not None and seconds > 0 else None


def milliseconds_text(seconds: float | None) -> str:
    """Seconds as milliseconds, with one decimal below ten; "" if unknown."""
    if seconds is None:
        return ""
    return f"{1e3 * seconds:.{0 if seconds >= 9.95e-3 else 1}f}"


def setting_text(value: Any) -> str:
    """A hyperparameter: a float with three significant digits; text and integers unchanged."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def settings_of(row: Row) -> dict[str, Any]:
    """The hyperparameters of a leaderboard row by their dotted names, without the seed."""
    settings = {name.removeprefix(CONFIG): value for name, value in row.items() if name.startswith(CONFIG)}
    return {name: value for name, value in settings.items() if name.rsplit(".", 1)[-1] != "seed"}


def configuration_of(row: Row) -> str:
    """One text per configuration: rows with the same `settings_of` have the same."""
    return repr(sorted(settings_of(row).items()))


def finished_like(rows: Iterable[Row], configuration: str) -> list[str]:
    """The ids of the finished trials of a configuration (`configuration_of`), of the search and of the confirmation."""
    return [row["id"] for row in rows if row["status"] == "finished" and configuration_of(row) == configuration]


def varied_settings(rows: Sequence[Row]) -> list[str]:
    """The dotted names of the hyperparameters that differ between trials."""
    trials = [settings_of(row) for row in rows if row.get("kind") != "control"]
    names = dict.fromkeys(name for settings in trials for name in settings)
    return [name for name in names if len({repr(settings.get(name)) for settings in trials}) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Dotted name -> its last part if that is unique, else the whole name."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)}


def trial_name(row: Row) -> str:
    """A trial's label or else its id, as in "1:1:1" or "t007". Both if the label is a bare number, "t000 (0.5)".
    A label with a comma is quoted.
    """
    label, id = row.get("label"), str(row["id"])
    if not label:
        return id
    if re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", label):
        return f"{id} ({label})"
    return f'"{label}"' if "," in label else str(label)


@dataclass(frozen=True)
class TrialTexts:
    """Trials as readers see them.

    Attributes:
        varied: dotted names of the settings that differ between the trials.
        points: (label, its settings) of every point that the space gives.
    """

    varied: Sequence[str]
    points: Sequence[tuple[str, Mapping[str, Any]]]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> TrialTexts:
        """From all rows of a leaderboard."""
        rows = list(rows)
        points = {configuration_of(row): (str(row["label"]), settings_of(row)) for row in rows if row.get("label")}
        return cls(varied_settings(rows), list(points.values()))

    def text(self, row: Row) -> str:
        """A trial's id with its label or its varied settings, as in "t007 (inversion 0.05, ground_truth 12)".

        If its choices and whole numbers are those of one point, this point stands for them: "t006 (concatenation with
        rate_factor 2.11)".
        """
        if row.get("label"):
            return f"{row['id']} ({row['label']})"
        settings, short = settings_of(row), short_names(self.varied)
        floats = [name for name in self.varied if isinstance(settings.get(name), float)]
        discrete = [name for name in self.varied if name not in floats]
        alike = [label for label, point in self.points if all(point.get(n) == settings.get(n) for n in discrete)]
        named = discrete and floats and len(alike) == 1
        own = [name for name in (floats if named else self.varied) if setting_text(settings.get(name))]  # of its method
        parts = [f"{short[name]} {setting_text(settings[name])}" for name in own]
        text = f"{alike[0]} with {' and '.join(parts)}" if named else ", ".join(parts)
        return f"{row['id']} ({text})" if parts else str(row["id"])


def count_text(count: int, singular: str, plural: str | None = None) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
