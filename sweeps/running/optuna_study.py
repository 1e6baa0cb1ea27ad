"""Optuna's journal and TPE for sweeps of thousands of trials: neither costs more with every trial."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Container
from contextlib import suppress
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

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

    Args:
        before: the sampler of the trial before, whose list of trials goes on. This only saves time.
    """

    def __init__(self, before: BaseSampler | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._known: _Known = before._known if isinstance(before, RecentTPE) else _Known()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._part = _Part(study, self._known.looked_at(study))  # a proposal begins here
        return super().infer_relative_search_space(self._part, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(self._part, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return super().sample_independent(self._part, trial, param_name, param_distribution)


class _Known:
    """The trials of one study, by their numbers. Those that have ended are asked for once: they do not change."""

    def __init__(self) -> None:
        self._count = 0
        self._open: dict[int, int] = {}
        """Number -> id of those that have not ended."""
        self._ended: list[FrozenTrial] = []
        self._numbers: list[int] = []  # of `_ended`
        self._best: list[tuple[float, int]] = []
        """(value, smaller is better, number) of the best complete ones."""

    def looked_at(self, study: Study) -> list[FrozenTrial]:
        """Of the ended trials, the best and the newest; and all that run."""
        storage = study._storage
        with suppress(KeyError):  # there is no trial of this number yet
            while True:
                id = storage.get_trial_id_from_study_id_trial_number(study._study_id, self._count)
                self._open[self._count] = id
                self._count += 1
        running = []
        for number, id in list(self._open.items()):
            trial = storage.get_trial(id)
            if trial.state.is_finished():
                del self._open[number]
                self._add(study, trial)
            else:
                running.append(trial)
        ended = self._ended
        if len(ended) > LOOKED_AT and len(study.directions) == 1:  # with several objectives, all are looked at
            best = {number for _, number in self._best}
            rest = (trial for trial in reversed(ended) if trial.number not in best)
            chosen = [ended[bisect.bisect_left(self._numbers, number)] for number in best]
            ended = [*chosen, *itertools.islice(rest, LOOKED_AT - len(best))]
        return sorted([*ended, *running], key=lambda trial: trial.number)

    def _add(self, study: Study, trial: FrozenTrial) -> None:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return
        place = bisect.bisect_left(self._numbers, trial.number)
        self._numbers.insert(place, trial.number)
        self._ended.insert(place, trial)
        if trial.state == TrialState.COMPLETE and len(study.directions) == 1:
            (value,) = trial.values
            bisect.insort(self._best, (-value if study.direction == StudyDirection.MAXIMIZE else value, trial.number))
            del self._best[_BEST:]


class _Part(Study):
    """A study of which only some trials are seen. It shares the study's storage."""

    def __init__(self, study: Study, seen: list[FrozenTrial]) -> None:
        self.__dict__.update(study.__dict__)
        self._seen = seen

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._seen if states is None or trial.state in states]


def new_trial(study: Study) -> Trial:
    """`study.ask`, without its look at all trials for one that waits: there is none."""
    study._thread_local.cached_all_trials = None
    return Trial(study, study._storage.create_new_trial(study._study_id))
