"""The parts of a question: parameters with their distributions, points to try first, and references to compare with.

Data only. Nothing here imports torch, Ray or Optuna, so that listing the spaces takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


class SpaceError(ValueError):
    """A file of search_spaces/ that does not define a question. One line that names the file, and its line."""


Value = float | int | str | bool


def _range(low: float, high: float, log: bool) -> str:
    return f"{low:g} to {high:g}{' (log)' if log else ''}"


@dataclass(frozen=True)
class Float:
    """A real number in [low, high], uniform or, with `log`, log-uniform."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            raise ValueError(
                f"Float({self.low}, {self.high}, log={self.log}): needs finite low < high, and low > 0 with log"
            )

    def __str__(self) -> str:
        return _range(self.low, self.high, self.log)

    def contains(self, value: Value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high


@dataclass(frozen=True)
class Int:
    """A whole number in [low, high], both included."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"Int({self.low}, {self.high}, log={self.log}): needs low <= high, and low > 0 with log")

    def __str__(self) -> str:
        return f"whole numbers {_range(self.low, self.high, self.log)}"

    def contains(self, value: Value) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Choice(()): needs at least one value")

    def __str__(self) -> str:
        return " or ".join(map(str, self.values))

    def contains(self, value: Value) -> bool:
        return value in self.values

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values


Distribution = Float | Int | Choice


@dataclass(frozen=True)
class When:
    """A parameter that exists only if others have one of these values: `When({"method": ("ccsr",)}, Float(0, 1))`.

    The parameters in its condition must come before it in the space.
    """

    condition: Mapping[str, tuple[Value, ...]]
    distribution: Distribution

    def __str__(self) -> str:
        conditions = (f"{name} is {' or '.join(map(str, accepted))}" for name, accepted in self.condition.items())
        return f"{self.distribution} (where {' and '.join(conditions)})"

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Whether the parameter exists with these values of the others."""
        return all(name in values and values[name] in accepted for name, accepted in self.condition.items())


@dataclass(frozen=True)
class Point:
    """A configuration to try before the search proposes its own."""

    label: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Criterion:
    """The value that the answer must reach in a metric, and a value that others reached, on other data.

    The metric knows which direction is better.
    """

    metric: str
    reference: float
    target: float


@dataclass(frozen=True)
class SearchSpace:
    """One question.

    Attributes:
        name: the file's name, and the value of `--space`.
        question: one sentence, ending in a question mark.
        method: the method that every trial trains, a name of `trainables.settings.methods`; if the method is a
            parameter, that of the baseline.
        parameters: dotted setting name -> distribution, for each searched setting.
        points: tried first, in order. The first one is the baseline, with which every answer is compared. Points are
            never stopped early, because a comparison needs both sides at the last step.
        objective: the metric of the search: its full name, or "perceptual" for the sweep's perceptual metric.
        controls: untrained reference rows of the leaderboard, names of `trainables.training.controls`.
        preset: the preset that the question is asked in unless `--preset` names another one.
        fixed: dotted setting name -> value, where this question differs from the preset.
        proposals: number of trials that the search adds to the points; None for the preset's number, 0 if the points
            are all.
        criteria: targets with which the answer is compared.
        trains: False if trials only restore with a finished model, each with other settings.
    """

    name: str
    question: str
    method: str
    parameters: Mapping[str, Distribution | When]
    points: tuple[Point, ...]
    objective: str
    controls: tuple[str, ...] = ()
    preset: str = "sample"
    fixed: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict)
    proposals: int | None = None
    criteria: tuple[Criterion, ...] = ()
    trains: bool = True

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError(f"space {self.name}: needs at least one point, the baseline")
        if both := sorted(set(self.fixed) & set(self.parameters)):
            raise ValueError(f"space {self.name}: {', '.join(both)} cannot be both fixed and searched")
        labels = [point.label for point in self.points]
        if len(set(labels)) < len(labels):
            raise ValueError(f"space {self.name}: the labels {labels} must differ")
        seen: list[str] = []
        for name, parameter in self.parameters.items():
            if isinstance(parameter, When) and (
                unknown := [other for other in parameter.condition if other not in seen]
            ):
                raise ValueError(
                    f"space {self.name}: {name} depends on {', '.join(unknown)}, which must come before it"
                )
            seen.append(name)
        for point in self.points:
            if set(point.values) != set(self.active(point.values)):
                raise ValueError(
                    f"space {self.name}, point {point.label!r}: gives {sorted(point.values)}, "
                    f"but its parameters are {sorted(self.active(point.values))}"
                )
            for name, value in point.values.items():
                allowed = self.distributions[name]
                if not allowed.contains(value):
                    raise ValueError(f"space {self.name}, point {point.label!r}: {name}={value!r} is not in {allowed}")

    @property
    def distributions(self) -> dict[str, Distribution]:
        """Every parameter's distribution, without conditions."""
        return {name: p.distribution if isinstance(p, When) else p for name, p in self.parameters.items()}

    def active(self, values: Mapping[str, Value]) -> list[str]:
        """The parameters that exist with these values."""
        return [name for name, p in self.parameters.items() if not isinstance(p, When) or p.holds(values)]

    @property
    def edges(self) -> list[dict[str, Value]]:
        """Configurations at the ends of each parameter's range and at each of its choices, with the others at their
        first value.

        If a range exceeds what the settings accept, one of these configurations is refused.
        """
        return [self._beside({name: value}) for name, among in self.distributions.items() for value in among.ends]

    def _beside(self, wanted: Mapping[str, Value]) -> dict[str, Value]:
        """A configuration with these values, and with values that make their conditions true."""
        wanted = dict(wanted)
        for name, parameter in reversed(list(self.parameters.items())):
            if name in wanted and isinstance(parameter, When):
                wanted = {other: accepted[0] for other, accepted in parameter.condition.items()} | wanted
        values: dict[str, Value] = {}
        for name, parameter in self.parameters.items():
            if not isinstance(parameter, When) or parameter.holds(values):
                values[name] = wanted.get(name, self.distributions[name].ends[0])
        return values

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that trials train, the baseline's first."""
        choice = self.distributions.get("method")
        others = [str(value) for value in choice.values] if isinstance(choice, Choice) else []
        return tuple(dict.fromkeys([self.method, *others]))

    @property
    def baseline(self) -> Point:
        return self.points[0]
