"""What the sections' checks say, in one form: the setting, its value, what is accepted."""

from __future__ import annotations

import math

from trainables.common.errors import InputError

MOST_STEPS = 2**31 - 1
LARGEST_SEED = 2**32 - 1
"""What NumPy's random states take; the seeds of a sweep count up from its own, which ends half way there."""


def require(holds: bool, name: str, value: object, accepted: str) -> None:
    """Raises InputError unless `holds`."""
    if not holds:
        raise InputError(f"{name}={value}: expected {accepted}")


def require_weight(name: str, value: float) -> None:
    """A loss weight is finite and not negative."""
    require(math.isfinite(value) and value >= 0, name, value, "a weight of 0 or more")


def require_positive(name: str, value: float) -> None:
    """A factor is above 0, and no larger than would make sense."""
    require(0 < value <= 1000, name, value, "a number above 0, at most 1000")


def require_share(name: str, value: float) -> None:
    """A share is between 0 and 1, both included."""
    require(0 <= value <= 1, name, value, "a number from 0 to 1")


def require_within(section: str, settings: object, **limits: tuple[float, float]) -> None:
    """Every named field, or each element of a tuple, lies within its limits, both included. Of what is built, the upper
    one is far above what anybody trains, and keeps a slip of the keyboard from taking the machine's memory."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        accepted = f"{'each ' if numbers is value else ''}{low} to {high}"
        require(all(low <= number <= high for number in numbers), f"{section}.{name}", value, accepted)
