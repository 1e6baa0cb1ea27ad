"""Limits of time and money, and what a sweep is expected to take."""

from __future__ import annotations

import argparse
import math
import re

from trainables.common.units import duration

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhd])")


def time_span(text: str) -> float:
    """Flag type: seconds from "8h", "90m", "1h30m" or "45s"."""
    parts = _PART.findall(text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if _PART.sub("", text).strip() or not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a time such as 8h, 90m, 1h30m or 45s")
    return seconds


def money(seconds: float, price_per_hour: float) -> str:
    """ ", 1.25 USD at 2.5 USD an hour"; empty without a price."""
    return f", {seconds / 3600 * price_per_hour:.2f} USD at {price_per_hour:g} USD an hour" if price_per_hour else ""


def expectation(preparation: float, search: float, confirmation: float, price_per_hour: float) -> str:
    """The time of a sweep in one line.

    Args:
        preparation, search, confirmation: estimated seconds; those of the search if no trial is stopped.
    """
    total = preparation + search + confirmation
    parts = [f"search {duration(search)} if no trial is stopped"]
    parts += [f"confirmation {duration(confirmation)}"] if confirmation else []
    parts += [f"preparation {duration(preparation)}"] if preparation else []
    return f"about {duration(total)}{money(total, price_per_hour)}: {', '.join(parts)}"
