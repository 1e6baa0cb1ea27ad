"""Optuna's journal and TPE for sweeps of thousands of trials: neither costs more with every trial."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Container
from operator import itemgetter
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

LOOKED_AT = 500
"""Ended trials that TPE looks at: the best ones, and the newest of the others."""
_BEST = 25  # TPE models its good trials with at most so many, see `optuna.samplers._tpe.sampler.default_gamma`


class Journal(JournalFileBackend):
    """Optuna's journal with one writer, and without waiting for the disk: it is made again when a sweep is resumed.

    Optuna's own waits for the disk some twenty times a trial.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        with open(self._file_path, "a", encoding="utf-8") as file:
            file.writelines(lines)


class RecentTPE(TPESampler):
    """TPE that looks at no more than `LOOKED_AT` ended trials, so that a proposal takes the same time at any number.

    TPE compares the density of the best trials (25 at most) with that of all others, among which older ones count less.
    Here the others are the newest ones.
    """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._part = _Part(study)  # a proposal begins here
        return super().infer_relative_search_space(self._part, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(self._part, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(self._part, trial, param_name, param_distribution)


class _Part(Study):
    """A study of which only the trials that TPE looks at are seen. It shares the study's storage."""

    def __init__(self, study: Study) -> None:
        self.__dict__.update(study.__dict__)
        trials = study._get_trials(deepcopy=False)
        complete, pruned = TrialState.COMPLETE, TrialState.PRUNED
        ended = [number for number, trial in enumerate(trials) if trial.state == complete or trial.state == pruned]
        if len(ended) > LOOKED_AT:
            ranked = [(trials[number].values[0], number) for number in ended if trials[number].state == complete]
            choose = heapq.nlargest if study.direction == StudyDirection.MAXIMIZE else heapq.nsmallest
            best = {number for _, number in choose(_BEST, ranked, key=itemgetter(0))}
            newest = itertools.islice(
                (number for number in reversed(ended) if number not in best), LOOKED_AT - len(best)
            )
            left_out = set(ended).difference(best, newest)
            trials = [trial for number, trial in enumerate(trials) if number not in left_out]
        self._seen = trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._seen if states is None or trial.state in states]
