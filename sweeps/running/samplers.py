"""How the search proposes configurations: Optuna's samplers, and a grid.

A sampler is made anew for each trial, seeded by the sweep's seed and the trial's number, so that a resumed sweep
proposes what an uninterrupted one would.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler

from search_spaces import Choice, Distribution, Float, Int, SearchSpace, Value, When
from sweeps.planning.sampling import GRID_LEVELS
from sweeps.running.optuna_study import RecentTPE

LEAST_KNOWN = 5  # distinct configurations with a result before a model proposes the next one
LEAST_RANDOM = 3  # of them, besides the points of the space: a model that has seen only points trusts them too much


def optuna_distribution(distribution: Distribution) -> BaseDistribution:
    """A space's distribution as an Optuna distribution."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.values)
    if isinstance(distribution, Float):
        return FloatDistribution(distribution.low, distribution.high, log=distribution.log)
    return IntDistribution(distribution.low, distribution.high, log=distribution.log)


def stored_value(distribution: Distribution, value: Any) -> Value:
    """A parameter's value as the space has it. A table keeps a column of mixed types as text or as floats."""
    if isinstance(distribution, Choice):
        same = [v for v in distribution.values if v == value or str(v) == str(value)]
        if not same:
            raise ValueError(f"{value} is none of {distribution}")
        return next((v for v in same if type(v) is type(value)), same[0])
    number = int(value) if isinstance(distribution, Int) else float(value)
    if not distribution.contains(number):
        raise ValueError(f"{value} is not in {distribution}")
    return number


def draw(space: SearchSpace, trial: optuna.Trial) -> dict[str, Value]:
    """The values of a trial, parameter by parameter. A conditional parameter is drawn only if it is active."""
    values: dict[str, Value] = {}
    for name, distribution in space.distributions.items():
        if name in space.active(values):
            values[name] = trial._suggest(name, optuna_distribution(distribution))
    return values


def text_of(parameters: Mapping[str, Value]) -> str:
    """One text per configuration, whatever the order of its parameters."""
    return repr(sorted(parameters.items()))


def least_known(points: int) -> int:
    """How many distinct configurations must have a result before a model proposes: until then, proposals are random.

    Args:
        points: distinct points of the space.
    """
    return max(LEAST_KNOWN, points + LEAST_RANDOM)


def make_sampler(
    name: str, space: SearchSpace, seed: int, number: int, modelled: bool, before: BaseSampler | None = None
) -> BaseSampler:
    """The sampler of one trial.

    Args:
        name: a name of `search_spaces.SAMPLERS`, except "grid".
        seed: of the sweep. number: of the trial.
        modelled: whether enough configurations are known for a model, see `least_known`.
        before: of the trial before. CMA-ES and TPE go on with what it knows, which only saves time.
    """
    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    if name == "random" or not modelled:
        return optuna.samplers.RandomSampler(seed=own)
    if name == "cmaes":
        from sweeps.running.cma_es import ReplayedCmaEs  # imports SciPy, for half a second

        sampler = before if isinstance(before, ReplayedCmaEs) else ReplayedCmaEs()
        sampler.seed = own
        return sampler
    with warnings.catch_warnings():
        # Multivariate sampling and the constant liar are marked experimental: their interface may change.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=own, n_startup_trials=1, warn_independent_sampling=False)
        return RecentTPE(
            before,
            seed=own,
            n_startup_trials=1,
            multivariate=True,
            group=len(space.methods) > 1 or any(isinstance(p, When) for p in space.parameters.values()),
            constant_liar=True,
        )


def grid(space: SearchSpace) -> dict[str, dict[str, Value]]:
    """All combinations of the choices and of five values of each range, evenly spaced (by ratio with `log`), by their
    `text_of`. A conditional parameter varies only where it exists.
    """
    found: dict[str, dict[str, Value]] = {}
    for values in itertools.product(*map(_levels, space.distributions.values())):
        combination = dict(zip(space.distributions, values, strict=True))
        kept: dict[str, Value] = {}
        for name in space.distributions:
            if name in space.active(kept):
                kept[name] = combination[name]
        found[text_of(kept)] = kept
    return found


def _levels(distribution: Distribution) -> Sequence[Value]:
    if isinstance(distribution, Choice):
        return distribution.values
    low, high = float(distribution.low), float(distribution.high)
    shares = [level / (GRID_LEVELS - 1) for level in range(GRID_LEVELS)]
    if distribution.log:
        between = [math.exp(math.log(low) + share * (math.log(high) - math.log(low))) for share in shares[1:-1]]
    else:
        between = [low + share * (high - low) for share in shares[1:-1]]
    levels: list[Value] = [distribution.low, *between, distribution.high]
    if isinstance(distribution, Int):
        return list(dict.fromkeys(round(float(level)) for level in levels))
    return [float(level) for level in levels]


def least_tried(configurations: Mapping[str, dict[str, Value]], tried: Sequence[str], seed: int) -> dict[str, Value]:
    """The configuration of a `grid` with the fewest trials; among equals, the first in a random order.

    Args:
        tried: `text_of` the configuration of each trial so far.
        seed: of the order.
    """
    texts, counts = list(configurations), Counter(tried)
    order = np.random.default_rng(seed).permutation(len(texts))
    return configurations[min((texts[k] for k in order), key=lambda text: counts[text])]
