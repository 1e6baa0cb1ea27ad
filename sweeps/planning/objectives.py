"""What a search optimises: one or several metrics, and constraints that a configuration must meet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables.common.errors import InputError
from trainables.metrics.names import METRICS
from trainables.metrics.pyiqa_names import register_pyiqa

_CONSTRAINT = re.compile(r"\s*(\S+?)\s*(>=|<=)\s*(\S+)\s*")
_FORM = "expected METRIC>=NUMBER or METRIC<=NUMBER, such as val/psnr>=24"


@dataclass(frozen=True)
class Objective:
    """Attributes:
    metric: its full name. direction: "max" or "min".
    """

    metric: str
    direction: str

    def gain(self, value: float) -> float:
        """The value as something to maximise."""
        return value if self.direction == "max" else -value


@dataclass(frozen=True)
class Constraint:
    """Attributes:
    metric: its full name.
    bound: the value that is just accepted.
    least: whether the metric must be at least the bound; otherwise at most.
    """

    metric: str
    bound: float
    least: bool

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.least else '<='}{self.bound:g}"

    def excess(self, row: Mapping[str, Any]) -> float:
        """How far a row of the leaderboard misses the bound; 0 or negative if it meets it, infinite without a value."""
        value = row.get(self.metric)
        if value is None or not math.isfinite(value):
            return math.inf
        return self.bound - value if self.least else value - self.bound


def feasible(constraints: Sequence[Constraint], row: Mapping[str, Any]) -> bool:
    """Whether a row of the leaderboard meets all constraints."""
    return all(constraint.excess(row) <= 0 for constraint in constraints)


def metric_name(flag: str, text: str) -> str:
    """The full name of a metric, from "psnr" or "val/psnr". A metric of pyiqa, "pyiqa_niqe", is looked up there.

    Raises:
        InputError: no such metric.
    """
    name = text if text.startswith("val/") else f"val/{text}"
    register_pyiqa([name])
    if name not in METRICS:
        known = [m.name.removeprefix("val/") for m in METRICS.values() if m.compared_with != "other seeds"]
        names = ["perceptual", *known] if flag == "--objective" else known
        raise InputError(f"{flag} {text}: no such metric; expected {', '.join(names)}, or pyiqa_NAME")
    return name


def further_metrics(text: str) -> tuple[str, ...]:
    """The full names of the metrics in `--metrics dists,pyiqa_niqe`.

    Raises:
        InputError: an empty name, one given twice, no such metric, or one that compares seeds.
    """
    names = tuple(metric_name("--metrics", name) for name in _split("--metrics", text))
    if several := [name for name in names if METRICS[name].compared_with == "other seeds"]:
        raise InputError(
            f"--metrics {text}: {several[0]} compares restorations with different noise; it is reported with "
            "training.stability_draws=2 or more"
        )
    return names


def parse_constraint(text: str) -> Constraint:
    """A constraint from "val/psnr>=24".

    Raises:
        InputError: another form, an unknown metric or a bound that is no finite number.
    """
    found = _CONSTRAINT.fullmatch(text)
    if not found:
        raise InputError(f"--constraint {text}: {_FORM}")
    name, relation, number = found.groups()
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise InputError(f"--constraint {text}: {number} is no finite number; {_FORM}")
    return Constraint(metric_name("--constraint", name), bound, relation == ">=")


def split_objectives(text: str) -> tuple[str, ...]:
    """The names in `--objective psnr,lpips`, without spaces.

    Raises:
        InputError: an empty name, or one given twice.
    """
    return _split("--objective", text)


def _split(flag: str, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",")) if text else ()
    if "" in names:
        raise InputError(f"{flag} {text}: a name is empty; expected metrics separated by commas")
    full = [name.removeprefix("val/") for name in names]
    for name in full:
        if full.count(name) > 1:
            raise InputError(f"{flag} {text}: {name} is given twice; expected different metrics")
    return names
