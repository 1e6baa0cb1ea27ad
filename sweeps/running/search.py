"""Optuna's TPE proposes trials and ASHA stops them, through Ray Tune."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from search_spaces import Choice, Distribution, Float, SearchSpace, Value, When
from sweeps.planning.confirmation import FIRST_SEED, Confirmation, leaders
from sweeps.planning.confirmation import trial_id as confirmation_id
from sweeps.recording.tables import read_rows
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, LABEL, PARAMETERS, SEED, TRIAL
from trainables.training.launch import FAILED

LEAST_RANDOM = 5  # trials before TPE proposes: the points, and random ones if there are fewer


def optuna_distribution(distribution: Distribution) -> BaseDistribution:
    """A space's distribution as an Optuna distribution."""
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.values)
    if isinstance(distribution, Float):
        return FloatDistribution(distribution.low, distribution.high, log=distribution.log)
    return IntDistribution(distribution.low, distribution.high, log=distribution.log)


def draw(space: SearchSpace, trial: optuna.Trial) -> dict[str, Value]:
    """The values of a trial, parameter by parameter. A conditional parameter is drawn only if it is active."""
    values: dict[str, Value] = {}
    for name, distribution in space.distributions.items():
        if name in space.active(values):
            values[name] = trial._suggest(name, optuna_distribution(distribution))
    return values


class SweepSearch(OptunaSearch):
    """Optuna under Tune: the space's points first, in the order of its queue, then TPE.

    When all of them have ended, the best configurations and the baseline run again with fresh seeds, if there is a
    confirmation. Optuna does not see these trials.

    A trial that was stopped early is reported to Optuna as pruned, with the values it reported: its last value comes
    from a shorter training and must not compete with those of finished trials.

    Args:
        max_steps: training steps of a finished trial.
        confirmation: None for a search alone.
        journal: Optuna's storage file; optuna-dashboard can open it while the sweep runs.
    """

    # As in a run of version 0.1, which Tune has pickled without them.
    _confirmation: Confirmation | None = None
    _confirming: AbstractSet[str] = frozenset()

    def __init__(
        self,
        space: SearchSpace,
        metric: str,
        mode: str,
        seed: int,
        trials: int,
        max_steps: int,
        journal: Path,
        confirmation: Confirmation | None = None,
    ) -> None:
        self._queue = [(point.label, 0, dict(point.values)) for point in space.points[:trials]]
        self._search_trials, self._max_steps = trials, max_steps
        self._questioned, self._confirmation = space, confirmation
        self._confirmed: list[tuple[str, dict[str, Value]]] = []
        """The label and the parameters of each configuration to confirm, once the search has ended."""
        self._confirming = set[str]()
        """Tune's names of the trials of the confirmation."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # Multivariate sampling and the constant liar are marked experimental: their interface may change.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=max(len(self._queue), LEAST_RANDOM),
                multivariate=True,
                group=len(space.methods) > 1 or any(isinstance(p, When) for p in space.parameters.values()),
                constant_liar=True,
            )
        super().__init__(
            space=functools.partial(draw, space),
            metric=metric,
            mode=mode,
            points_to_evaluate=[values for _, _, values in self._queue],
            sampler=sampler,
            study_name=space.name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
        )

    def suggest(self, trial_id: str) -> Any:
        """The next trial's Tune config; its keys are in `sweeps.trial_config`. None if it depends on running trials;
        FINISHED if there is none.
        """
        if self._confirmation and trial_id not in self._ot_trials and len(self._ot_trials) >= self._search_trials:
            return self._confirm(trial_id, self._confirmation)
        study: optuna.Study = self._ot_study  # type: ignore[assignment]  # annotated with its value before the set-up
        if trial_id not in self._ot_trials:
            self._ot_trials[trial_id] = self._lost() or study.ask()
        parameters = draw(self._questioned, self._ot_trials[trial_id])
        # Optuna's number: queued points have the first numbers, and a killed driver does not lose them.
        number = self._ot_trials[trial_id].number
        if number < len(self._queue):
            label, offset, _ = self._queue[number]
        else:
            # A configuration proposed again gets another seed: the same trial would give the same result.
            earlier = study.get_trials(deepcopy=False)[:number]
            offset = sum(trial.params == parameters for trial in earlier)
            label = next((name for name, _, values in self._queue if values == parameters), "")
        return {
            PARAMETERS: parameters,
            ID: f"t{number:03d}",
            LABEL: label,
            SEED: offset,
            GIVEN: number < len(self._queue),
            KIND: TRIAL,
        }

    def _confirm(self, trial_id: str, confirmation: Confirmation) -> Any:
        """A trial of the confirmation. Configurations take turns, so that one that is interrupted has seeds of all."""
        if not self._ot_trials.keys() <= self._completed_trials:
            return None
        if not self._confirmed:
            self._confirmed = self._leaders(confirmation)
        number = len(self._confirming)
        if number >= len(self._confirmed) * confirmation.seeds:
            return self.FINISHED
        self._confirming = {*self._confirming, trial_id}
        label, parameters = self._confirmed[number % len(self._confirmed)]
        return {
            PARAMETERS: dict(parameters),
            ID: confirmation_id(number),
            LABEL: label,
            SEED: FIRST_SEED + number,
            GIVEN: True,
            KIND: CONFIRMATION,
        }

    def _leaders(self, confirmation: Confirmation) -> list[tuple[str, dict[str, Value]]]:
        """The baseline and the best of the other configurations that finished; empty if none did."""
        study: optuna.Study = self._ot_study  # type: ignore[assignment]  # annotated with its value before the set-up
        baseline = self._questioned.baseline
        found: dict[str, list[float]] = {}
        parameters: dict[str, dict[str, Value]] = {}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            found.setdefault(_text(trial.params), []).append(float(trial.value or 0.0))
            parameters[_text(trial.params)] = dict(trial.params)
        best = leaders(found, _text(baseline.values), confirmation.finalists, self.mode == "max")
        if not best:
            return []
        labels = {_text(point.values): point.label for point in self._questioned.points}
        others = [(labels.get(name, ""), parameters[name]) for name in best]
        return [(baseline.label, dict(baseline.values)), *others]

    def _lost(self) -> optuna.Trial | None:
        """A trial in Optuna's journal that Tune does not know: the driver was killed before Tune saved it."""
        known = {trial.number for trial in self._ot_trials.values()}
        study: optuna.Study = self._ot_study  # type: ignore[assignment]  # annotated with its value before the set-up
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.number not in known:
                return optuna.Trial(study, frozen._trial_id)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.metric in result and trial_id not in self._completed_trials | self._confirming:
            with warnings.catch_warnings():
                # After a restart, Optuna keeps the first value of a step and warns about the second.
                warnings.simplefilter("ignore", UserWarning)
                self._ot_trials[trial_id].report(result[self.metric], result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self._confirming:
            return
        failed = error or (result is not None and FAILED in result)
        whole = result is not None and result.get("step", 0) >= self._max_steps
        super().on_trial_complete(trial_id, result if whole and not failed else None, error=failed)


def _text(parameters: Mapping[str, Value]) -> str:
    """One text per configuration, whatever the order of its parameters."""
    return repr(sorted(parameters.items()))


class SweepScheduler(ASHAScheduler):
    """ASHA with rungs measured in training steps. The points of a space and the confirmation are recorded at the rungs
    but never stopped: a comparison needs both sides at the last step.

    Args:
        history: the run's table of reports. Tune does not save the scheduler; a resumed sweep fills its rungs from it.
    """

    def __init__(
        self, metric: str, mode: str, max_steps: int, first_rung: int, reduction_factor: float, history: Path
    ) -> None:
        self._objective, self._history = metric, history
        super().__init__(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=max(1, max_steps),
            grace_period=max(1, min(first_rung, max_steps)),
            reduction_factor=reduction_factor,
        )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        reports = [row for row in read_rows(self._history) if row["id"] == trial.config[ID]]
        for row in sorted(reports, key=lambda row: row["step"]):
            self._trial_info[trial.trial_id].on_result(trial, row["step"], self._metric_op * row[self._objective])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and trial.config[GIVEN] and result["step"] < self._max_t:
            self._num_stopped -= 1
            return str(TrialScheduler.CONTINUE)
        return decision
