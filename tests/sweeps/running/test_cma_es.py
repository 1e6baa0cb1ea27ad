"""CMA-ES: it finds an optimum that random search does not, it ranks stopped trials and those that break a constraint
behind the others, and a late trial counts."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.running.cma_es import ReplayedCmaEs

RANGES: dict[str, optuna.distributions.BaseDistribution] = {name: FloatDistribution(-1, 1) for name in "abc"}


def distance(parameters: dict[str, float]) -> float:
    return sum(weight * (parameters[name] - 0.3) ** 2 for name, weight in zip("abc", (1, 10, 100), strict=True))


def propose(study: optuna.Study, sampler: optuna.samplers.BaseSampler) -> tuple[optuna.Trial, dict[str, float]]:
    study.sampler = sampler
    trial = study.ask()
    return trial, {name: trial._suggest(name, distribution) for name, distribution in RANGES.items()}


def seeded(sampler: ReplayedCmaEs, seed: int) -> ReplayedCmaEs:
    sampler.seed = seed
    return sampler


def best_of(kind: str, trials: int = 120) -> float:
    study, cma_es = optuna.create_study(), ReplayedCmaEs()
    for k in range(trials):
        random = kind == "random" or k < 6
        sampler = optuna.samplers.RandomSampler(seed=k) if random else seeded(cma_es, k)
        trial, parameters = propose(study, sampler)
        study.tell(trial, distance(parameters))
    return study.best_value


def test_it_finds_what_random_search_does_not() -> None:
    assert best_of("cmaes") < 0.1 * best_of("random")


def made(x: float, value: float, state: TrialState = TrialState.COMPLETE, excess: float = -1.0) -> FrozenTrial:
    more = {"intermediate_values": {4: value}} if state == TrialState.PRUNED else {}
    return create_trial(
        state=state,
        params=dict.fromkeys("abc", x),
        distributions=RANGES,
        value=value,
        constraints={"c": excess},
        **more,
    )


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("why", ["better", "not stopped", "meets the constraint"])
def test_the_distribution_moves_to_the_better_side(why: str, direction: str) -> None:
    """Ten trials at 0.5 and ten at -0.5; in two of the three cases those at -0.5 have the better value."""
    sign, better = (1 if direction == "minimize" else -1), why == "better"
    study = optuna.create_study(direction=direction)
    for k in range(20):
        shift = 0.02 * (k - 10)
        good = made(0.5 + shift / 4, sign * (1.0 if better else 2.0))
        bad = made(
            -0.5 + shift / 4,
            sign * (2.0 if better else 1.0),
            TrialState.PRUNED if why == "not stopped" else TrialState.COMPLETE,
            1.0 if why == "meets the constraint" else -1.0,
        )
        study.add_trials([bad, good])
    means = [sum(propose(study, seeded(ReplayedCmaEs(), seed))[1].values()) / 3 for seed in range(20)]
    assert sum(means) / len(means) > 0.2


def test_a_trial_that_ends_late_counts_as_if_it_had_ended_in_time() -> None:
    study, kept = optuna.create_study(), ReplayedCmaEs()
    running = []
    for k in range(30):
        trial, parameters = propose(study, seeded(kept, k))
        if k in (3, 8):
            running.append((trial, parameters))
        else:
            study.tell(trial, distance(parameters))
    for trial, parameters in running:
        study.tell(trial, distance(parameters))
    assert propose(study, seeded(kept, 99))[1] == propose(study, seeded(ReplayedCmaEs(), 99))[1]
