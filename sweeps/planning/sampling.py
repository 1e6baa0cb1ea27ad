"""Which sampler proposes configurations, and whether it can for a space."""

from __future__ import annotations

import math

from search_spaces import Choice, Distribution, SearchSpace, When
from trainables.common.errors import InputError

NAMES = {"tpe": "TPE", "gp": "a Gaussian process", "random": "random search", "grid": "a grid", "cmaes": "CMA-ES"}
"""For sentences: "proposed by TPE"."""


GRID_LEVELS = 5
"""Values of a range in a grid."""
MOST_COMBINATIONS = 100_000  # of a grid: each proposal looks at all


def _count(distribution: Distribution) -> int:
    return len(distribution.values) if isinstance(distribution, Choice) else GRID_LEVELS


def check_sampler(name: str, space: SearchSpace, objectives: int) -> None:
    """
    Args:
        objectives: number of objectives.

    Raises:
        InputError: the sampler cannot search this space.
    """
    if name == "grid":
        # A bound, because some parameters exist only with others, and a range of whole numbers may have fewer values.
        combinations = math.prod(_count(one) for one in space.distributions.values())
        if combinations > MOST_COMBINATIONS:
            raise InputError(
                f"--sampler grid: the space {space.name} has up to {combinations:,} combinations; expected at most "
                f"{MOST_COMBINATIONS:,}, or --sampler tpe, gp or random"
            )
    if name != "cmaes":
        return
    if objectives > 1:
        raise InputError(
            f"--sampler cmaes: searches for one objective, not {objectives}; expected tpe, gp, random or grid"
        )
    for parameter, distribution in space.parameters.items():
        if isinstance(distribution, When | Choice):
            raise InputError(
                f"--sampler cmaes: needs numbers that always exist, but the space {space.name} searches {parameter}: "
                f"{distribution}; expected tpe, gp, random or grid"
            )
