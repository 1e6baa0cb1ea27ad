"""The methods there are. Importing this loads no torch: the command line checks names with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainables.method import Method

# One line a method: its name, and where its class is.
METHODS: dict[str, str] = {
    "resshift": "trainables.resshift:ResShift",
    "sinsr": "trainables.sinsr:SinSR",
}


def method_class(name: str) -> type[Method]:
    """The class of a registered method."""
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found
