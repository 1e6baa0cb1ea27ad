"""CMA-ES that needs no state of its own, so that a resumed run goes on with it.

Optuna's own keeps its state in the journal as a pickle, which a resumed run never reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cmaes import CMA
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

_SPREAD = 0.3  # of each range, at the start; a random trial's standard deviation is 0.29


class ReplayedCmaEs(BaseSampler):
    """CMA-ES (Hansen, arXiv:1604.00772) by the package `cmaes`, for one objective and parameters that are numbers.

    It starts in the middle of the space and learns from the ended trials in the order of their numbers, one population
    after another: from points, random trials and trials of another run too. So the same history gives the same
    proposal. What it has learned is kept for the next proposal, and learned again if a trial has ended late.

    Within a population, trials that meet all constraints come first; of these, those that were not stopped early;
    then those with more steps; then those with better values. TPE ranks stopped trials in the same way.

    Attributes:
        seed: of the next draw.
    """

    def __init__(self) -> None:
        self.seed = 0
        self._space = IntersectionSearchSpace()
        self._distribution: CMA | None = None
        self._told: list[int] = []  # numbers of trials

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space.calculate(study)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        cube = _SearchSpaceTransform(search_space, transform_0_1=True)
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        ended = [one for one in study._get_trials(deepcopy=False, states=states) if one.values]
        if self._distribution is None or self._told != [one.number for one in ended[: len(self._told)]]:
            self._distribution, self._told = _start(cube), []
        size = self._distribution.population_size
        for first in range(len(self._told), len(ended) - size + 1, size):
            population = ended[first : first + size]
            self._told += [one.number for one in population]
            population.sort(key=lambda one: _rank(one, study.direction))
            places = [(cube.transform(one.params), float(place)) for place, one in enumerate(population)]
            self._distribution.tell(places)
            if self._distribution.should_stop():  # it has shrunk to a point
                self._distribution = _start(cube)
        self._distribution.reseed_rng(self.seed)
        return cube.untransform(self._distribution.ask())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return RandomSampler(seed=self.seed).sample_independent(study, trial, param_name, param_distribution)


def _start(cube: _SearchSpaceTransform) -> CMA:
    bounds = cube.bounds
    return CMA(mean=bounds.mean(axis=1), sigma=_SPREAD, bounds=bounds)


def _rank(trial: FrozenTrial, direction: StudyDirection) -> tuple[float, bool, int, float]:
    """Smaller is better."""
    excess = float(np.maximum(list(trial.constraints.values()), 0).sum())
    stopped = trial.state == TrialState.PRUNED
    steps = trial.last_step if stopped and trial.last_step is not None else 0
    value = trial.values[0]
    return excess, stopped, -steps, -value if direction == StudyDirection.MAXIMIZE else value
