"""Checks of settings. Every message names the setting, its value and the accepted values."""

from __future__ import annotations

import math
from typing import Any

from trainables.common.errors import InputError
from trainables.settings.setting import Limits, roles_of

MOST_STEPS = 2**31 - 1
LARGEST_SEED = 2**32 - 1
"""The largest seed of a NumPy random state. A sweep's own seed is below 2**31; the seeds of its trials count up from
it.
"""

# Ranges that several settings share, with their text in messages.
WEIGHT = Limits(0, math.inf, "a weight of 0 or more", open_high=True)
FACTOR = Limits(0, 1000, "a number above 0, at most 1000", open_low=True)
GUIDANCE = Limits(0, 100, "a number from 0 to 100")
SHARE = Limits(0, 1, "a number from 0 to 1")
DECAY = Limits(0, 1, "a number in [0, 1)", open_high=True)


def require(holds: bool, name: str, value: object, accepted: str) -> None:
    """Raises InputError unless `holds`."""
    if not holds:
        raise InputError(f"{name}={value}: expected {accepted}")


def require_all(*checks: tuple[bool, str, object, str]) -> None:
    """Raises one InputError for all checks that fail: (holds, name, value, accepted) as in `require`."""
    if failed := [f"{name}={value}: expected {accepted}" for holds, name, value, accepted in checks if not holds]:
        raise InputError("; ".join(failed))


def require_within(section: str, settings: Any) -> None:
    """Raises InputError for a field outside its limits. The upper limits of network sizes are far above any useful
    size; they keep a typing error from filling the machine's memory.
    """
    for name, roles in roles_of(settings).items():
        if roles.within:
            value, limits = getattr(settings, name), Limits(*roles.within)
            numbers = value if isinstance(value, tuple) else (value,)
            accepted = f"{'each ' if numbers is value else ''}{limits}"
            require(all(map(limits.hold, numbers)), f"{section}.{name}", value, accepted)
