"""The questions, one file each: a module that defines `SPACE`. To add a question, add one file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from search_spaces.space import (
    SAMPLERS,
    Choice,
    Criterion,
    Distribution,
    Float,
    Int,
    Point,
    SearchSpace,
    Value,
    When,
)

__all__ = [
    "SAMPLERS",
    "Choice",
    "Criterion",
    "Distribution",
    "Float",
    "Int",
    "Point",
    "SearchSpace",
    "Value",
    "When",
    "load",
    "names",
]


def names() -> list[str]:
    """The names of all spaces, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "space")


def load(name: str) -> SearchSpace:
    """The space with this name.

    Raises:
        KeyError: there is none; the message lists the existing names.
    """
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1)
        meant = f", nearest: {nearest[0]}" if nearest else ""
        raise KeyError(f"there is no space {name!r}{meant}; the spaces are: {', '.join(names())}")
    space = importlib.import_module(f"search_spaces.{name}").SPACE
    if space.name != name:
        raise ValueError(f"search_spaces/{name}.py defines a space named {space.name!r}; it must be {name!r}")
    return space
