"""Optuna's TPE proposes trials and ASHA stops them, through Ray Tune."""

from __future__ import annotations

import functools
import warnings
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
from sweeps.recording.tables import read_rows
from sweeps.trial_config import GIVEN, ID, LABEL, PARAMETERS, SEED
from trainables.training.launch import FAILED


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

    A trial that was stopped early is reported to Optuna as pruned, with the values it reported: its last value comes
    from a shorter training and must not compete with those of finished trials.

    Args:
        max_steps: training steps of a finished trial.
        journal: Optuna's storage file; optuna-dashboard can open it while the sweep runs.
    """

    def __init__(
        self, space: SearchSpace, metric: str, mode: str, seed: int, trials: int, max_steps: int, journal: Path
    ) -> None:
        self._queue = [(point.label, offset, dict(point.values)) for point, offset in space.queue[:trials]]
        self._max_steps = max_steps
        self._questioned = space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # Multivariate sampling and the constant liar are marked experimental: their interface may change.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=len(self._queue),
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

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next trial's Tune config; its keys are in `sweeps.trial_config`."""
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
        }

    def _lost(self) -> optuna.Trial | None:
        """A trial in Optuna's journal that Tune does not know: the driver was killed before Tune saved it."""
        known = {trial.number for trial in self._ot_trials.values()}
        study: optuna.Study = self._ot_study  # type: ignore[assignment]  # annotated with its value before the set-up
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.number not in known:
                return optuna.Trial(study, frozen._trial_id)
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.metric in result and trial_id not in self._completed_trials:
            with warnings.catch_warnings():
                # After a restart, Optuna keeps the first value of a step and warns about the second.
                warnings.simplefilter("ignore", UserWarning)
                self._ot_trials[trial_id].report(result[self.metric], result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        failed = error or (result is not None and FAILED in result)
        whole = result is not None and result.get("step", 0) >= self._max_steps
        super().on_trial_complete(trial_id, result if whole and not failed else None, error=failed)


class SweepScheduler(ASHAScheduler):
    """ASHA with rungs measured in training steps. The points of a space are recorded at the rungs but never stopped: a
    comparison needs both sides at the last step.

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
