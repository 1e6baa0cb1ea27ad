"""What the sections' checks say, in one form: the setting, its value, what is accepted."""

from __future__ import annotations

import math

from trainables.errors import InputError


def require(holds: bool, name: str, value: object, accepted: str) -> None:
    """Raises InputError unless `holds`."""
    if not holds:
        raise InputError(f"{name}={value}: expected {accepted}")


def require_weight(name: str, value: float) -> None:
    """A loss weight is finite and not negative."""
    require(math.isfinite(value) and value >= 0, name, value, "a weight of 0 or more")


def require_share(name: str, value: float) -> None:
    """A share is between 0 and 1, both included."""
    require(0 <= value <= 1, name, value, "a number from 0 to 1")
