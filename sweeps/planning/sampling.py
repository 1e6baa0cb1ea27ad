"""Which sampler proposes configurations, and whether it can for a space."""

from __future__ import annotations

import importlib.util

from search_spaces import Choice, SearchSpace, When
from trainables.common.errors import InputError

NAMES = {"tpe": "TPE", "gp": "a Gaussian process", "random": "random search", "grid": "a grid", "cmaes": "CMA-ES"}
"""For sentences: "proposed by TPE"."""


def check_sampler(name: str, space: SearchSpace) -> None:
    """Raises:
    InputError: the sampler's package is missing, or it cannot search this space.
    """
    if name != "cmaes":
        return
    for parameter, distribution in space.parameters.items():
        if isinstance(distribution, When | Choice):
            raise InputError(
                f"--sampler cmaes: needs numbers that always exist, but the space {space.name} searches {parameter}: "
                f"{distribution}; expected tpe, gp, random or grid"
            )
    if importlib.util.find_spec("cmaes") is None:
        raise InputError("--sampler cmaes: needs the package cmaes; install it with pip install cmaes")
