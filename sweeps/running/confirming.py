"""The trials of the confirmation: those of an earlier driver that have not ended, then the missing ones.

They follow from the results of the search, so a resumed sweep hands out what is left. If trials are added to a search
that has been confirmed, the leaders are chosen again. Configurations that were confirmed before stay finalists: each
claim of the answer is corrected for all of them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from search_spaces import Value
from sweeps.planning.confirmation import FIRST_SEED, Confirmation, leaders, trial_id
from sweeps.planning.objectives import Constraint, Objective, feasible
from sweeps.planning.pareto import ends_and_knee
from sweeps.running.samplers import text_of
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, LABEL, PARAMETERS, SEARCHED, SEED

Configuration = tuple[str, dict[str, Value]]
"""Its label and its parameters."""


@dataclass(frozen=True)
class Begun:
    """A trial of the confirmation that an earlier driver started.

    Attributes:
        seed: its seed offset.
        searched: the trials of the search among which its configuration was chosen; 0 in runs that did not record it.
        ended: whether it never runs again.
    """

    label: str
    parameters: dict[str, Value]
    seed: int
    searched: int
    ended: bool


def confirmations(
    confirmation: Confirmation, chosen: Sequence[Configuration], begun: Mapping[int, Begun], searched: int
) -> list[dict[str, Any]]:
    """The Tune configs of the trials that are left.

    Configurations take turns, so that a confirmation that is interrupted has seeds of all.

    Args:
        chosen: the baseline, then the best of the other configurations, best first; empty if none finished.
        begun: number -> trial. Configurations that this confirmation has begun stay, even if results of the search were
            lost since.
        searched: number of trials of the search.
    """
    left = [
        _config(number, trial.label, trial.parameters, trial.seed, trial.searched or searched)
        for number, trial in sorted(begun.items())
        if not trial.ended
    ]
    if not chosen:
        return left
    baseline, *best = chosen
    found = {text_of(baseline[1]): baseline}
    for _, trial in sorted(begun.items()):
        if trial.searched != searched:
            found.setdefault(text_of(trial.parameters), (trial.label, trial.parameters))
    again = {
        text_of(trial.parameters): (trial.label, trial.parameters)
        for _, trial in sorted(begun.items())
        if trial.searched == searched and text_of(trial.parameters) not in found
    }
    for label, parameters in best:
        if len(again) < confirmation.finalists:
            again.setdefault(text_of(parameters), (label, parameters))
    found |= again

    counts = Counter(text_of(trial.parameters) for trial in begun.values())
    free = (number for number in itertools.count() if number not in begun)  # trials do not start in their order
    for turn in range(confirmation.seeds):
        for text, (label, parameters) in found.items():
            if turn >= counts[text]:
                number = next(free)
                left.append(_config(number, label, parameters, FIRST_SEED + number, searched))
    return left


def finalists(
    ended: Sequence[FrozenTrial],
    queue: Sequence[Configuration],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    count: int,
) -> list[Configuration]:
    """The baseline and the best of the other configurations that meet all constraints; empty if none does.

    Of several objectives: the ends of the front and its knee, then others.

    Args:
        ended: the trials that finished.
        queue: the points of the space, the baseline first.
        count: largest number of configurations besides the baseline.
    """
    baseline, labels = text_of(queue[0][1]), {text_of(parameters): label for label, parameters in queue}
    found: dict[str, list[FrozenTrial]] = {}
    for trial in ended:
        found.setdefault(text_of(trial.params), []).append(trial)
    values = {
        name: [trial.values for trial in trials]
        for name, trials in found.items()
        if all(feasible(constraints, trial.user_attrs) for trial in trials)
    }
    if len(objectives) == 1:
        first = {name: [of_trial[0] for of_trial in of_trials] for name, of_trials in values.items()}
        best = leaders(first, baseline, count, objectives[0].direction == "max")
    else:
        means = {name: np.mean(of_trials, axis=0) for name, of_trials in values.items() if name != baseline}
        gains = {
            name: [o.gain(float(v)) for o, v in zip(objectives, mean, strict=True)] for name, mean in means.items()
        }
        best = ends_and_knee(gains)[:count]
    return [queue[0], *((labels.get(name, ""), dict(found[name][0].params)) for name in best)] if best else []


def _config(number: int, label: str, parameters: Mapping[str, Value], seed: int, searched: int) -> dict[str, Any]:
    return {
        PARAMETERS: dict(parameters),
        ID: trial_id(number),
        LABEL: label,
        SEED: seed,
        GIVEN: True,
        KIND: CONFIRMATION,
        SEARCHED: searched,
    }
