"""Optuna's TPE proposes trials and ASHA stops them, through Ray Tune.

Tune saves the state of searcher and scheduler, and this project never reads it: a resumed sweep fills both from the
run's tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from search_spaces import Choice, Distribution, Float, Int, SearchSpace, Value, When
from sweeps.recording.tables import TableRow, has_ended
from sweeps.trial_config import GIVEN, ID, LABEL, PARAMETERS, SEED
from trainables.common.errors import InputError, one_line
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


def trial_number(id: str) -> int:
    """The number of a proposed trial, "t012" -> 12; -1 for the id of anything else."""
    return int(id[1:]) if id[:1] == "t" and id[1:].isdigit() else -1


def stored_value(distribution: Distribution, value: Any) -> Value:
    """A parameter's value as the space has it. A table keeps a column of mixed types as text or as floats."""
    if isinstance(distribution, Choice):
        same = [v for v in distribution.values if v == value or str(v) == str(value)]
        if not same:
            raise ValueError(f"{value} is none of {distribution}")
        return next((v for v in same if type(v) is type(value)), same[0])
    return int(value) if isinstance(distribution, Int) else float(value)


class SweepSearch(Searcher):
    """The space's points first, in the order of its queue, then TPE's proposals.

    Trials of an earlier driver that have not ended come before both, with their ids and configurations. Optuna's
    journal is made again from the run's tables, so it may be damaged or missing.

    A trial that was stopped early is reported to Optuna as pruned, with the values it reported: its last value comes
    from a shorter training and must not compete with those of finished trials.

    Args:
        max_steps: training steps of a finished trial.
        journal: Optuna's storage file; optuna-dashboard can open it while the sweep runs. An existing one is replaced.
        rows: rows of the leaderboard from an earlier driver.
        reports_of: trial id -> its reports in the table.
        first_seed: seed of the sweep; a row's seed is counted from it.
    """

    def __init__(
        self,
        space: SearchSpace,
        metric: str,
        mode: str,
        seed: int,
        trials: int,
        max_steps: int,
        journal: Path,
        rows: Iterable[TableRow] = (),
        reports_of: Callable[[str], Sequence[TableRow]] = lambda id: (),
        first_seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._queue = [(point.label, offset, dict(point.values)) for point, offset in space.queue[:trials]]
        self._space, self._seed, self._max_steps, self._first_seed = space, seed, max_steps, first_seed
        self._numbers: dict[str, int] = {}
        self._running: dict[int, optuna.Trial] = {}
        self._waiting: list[dict[str, Any]] = []
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for old in journal.parent.glob(f"{journal.name}*"):  # also the lock of a killed driver
            old.unlink()
        self._study = optuna.create_study(
            study_name=space.name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            direction="maximize" if mode == "max" else "minimize",
        )
        known = {number: row for row in rows if (number := trial_number(row["id"])) >= 0}
        for number in range(min(max(known, default=-1) + 1, trials)):
            self._know(number, known.get(number), reports_of)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # see the module

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # all set at the start

    def save(self, checkpoint_path: str) -> None:
        """See the module."""

    def restore(self, checkpoint_path: str) -> None:
        """See the module."""

    def _know(self, number: int, row: TableRow | None, reports_of: Callable[[str], Sequence[TableRow]]) -> None:
        """Adds an earlier trial to the study; if it has not ended, it waits to be handed out.

        Args:
            row: None if the record of this trial is lost; then one is proposed again.
        """
        if row is None:
            self._waiting.append(self._propose(number))
            return
        states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        state = states[row["status"]] if has_ended(row) else TrialState.RUNNING
        stored = {name: (d, row.get(f"config/{name}")) for name, d in self._space.distributions.items()}
        try:
            parameters = {name: stored_value(d, value) for name, (d, value) in stored.items() if value is not None}
            config = self._config(number, parameters, row["seed"] - self._first_seed)
            frozen = optuna.trial.create_trial(
                state=state,
                value=row[self.metric] if state == TrialState.COMPLETE else None,
                params=parameters,
                distributions={name: optuna_distribution(self._space.distributions[name]) for name in parameters},
                user_attrs=self._attributes(config) | _metrics(row),
                intermediate_values={
                    report["step"]: report[self.metric] for report in reports_of(row["id"]) if _has(report, self.metric)
                },
            )
        except ValueError as error:
            raise InputError(
                f"{row['id']}: its parameters do not belong to the space {self._space.name} ({one_line(error)}); "
                "restore the space's file, or start a new run"
            ) from None
        self._study.add_trial(frozen)
        if state == TrialState.RUNNING:
            self._running[number] = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id)
            self._waiting.append(config)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's Tune config; its keys are in `sweeps.trial_config`."""
        config = self._waiting.pop(0) if self._waiting else self._propose(len(self._study.get_trials(deepcopy=False)))
        self._numbers[trial_id] = trial_number(config[ID])
        return config

    def _propose(self, number: int) -> dict[str, Any]:
        self._study.sampler = self._sampler(number)
        if number < len(self._queue):
            _, offset, parameters = self._queue[number]
            distributions = {name: optuna_distribution(self._space.distributions[name]) for name in parameters}
            self._study.add_trial(
                optuna.trial.create_trial(state=TrialState.RUNNING, params=parameters, distributions=distributions)
            )
            trial = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id)
        else:
            trial = self._study.ask()
            parameters = draw(self._space, trial)
            # TPE also notes what it drew for parameters that do not exist here, and would take that into account: then
            # a resumed sweep, which knows only the existing ones, would propose other values.
            self._study._storage.set_trial_system_attr(trial._trial_id, "tpe:relative_params:0", "")
            # A configuration proposed again gets another seed: the same trial would give the same result.
            earlier = self._study.get_trials(deepcopy=False)[:number]
            offset = sum(known.params == parameters for known in earlier)
        self._running[number] = trial
        config = self._config(number, parameters, offset)
        for name, value in self._attributes(config).items():
            trial.set_user_attr(name, value)
        return config

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        """TPE, seeded for each trial: a resumed sweep proposes the same as one that was not interrupted."""
        with warnings.catch_warnings():
            # Multivariate sampling and the constant liar are marked experimental: their interface may change.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0]),
                n_startup_trials=len(self._queue),
                multivariate=True,
                group=len(self._space.methods) > 1 or any(isinstance(p, When) for p in self._space.parameters.values()),
                constant_liar=True,
            )

    def _config(self, number: int, parameters: Mapping[str, Value], offset: int) -> dict[str, Any]:
        given = number < len(self._queue)
        same = (name for name, _, values in self._queue if values == parameters)
        return {
            PARAMETERS: dict(parameters),
            ID: f"t{number:03d}",
            LABEL: self._queue[number][0] if given else next(same, ""),
            SEED: offset,
            GIVEN: given,
        }

    def _attributes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What optuna-dashboard shows besides parameters and values."""
        return {"id": config[ID], "label": config[LABEL], "seed": self._first_seed + config[SEED]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._running.get(self._numbers[trial_id])
        if trial is not None and self.metric in result:
            with warnings.catch_warnings():
                # After a restart, Optuna keeps the first value of a step and warns about the second.
                warnings.simplefilter("ignore", UserWarning)
                trial.report(result[self.metric], result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._running.pop(self._numbers[trial_id], None)
        if trial is None:
            return
        result = result or {}
        if error or FAILED in result or self.metric not in result:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        for name, value in _metrics(result).items():
            trial.set_user_attr(name, value)
        if result["step"] >= self._max_steps:
            self._study.tell(trial, result[self.metric])
            return
        self._running[trial.number] = trial
        self.on_trial_result(trial_id, result)  # Tune does not pass on the result at which ASHA stops a trial
        self._study.tell(self._running.pop(trial.number), state=TrialState.PRUNED)


def _has(row: Mapping[str, Any], name: str) -> bool:
    return row.get(name) is not None


def _metrics(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("val/") and isinstance(value, float)}


class SweepScheduler(ASHAScheduler):
    """ASHA with rungs measured in training steps. The points of a space are recorded at the rungs but never stopped: a
    comparison needs both sides at the last step.

    Args:
        rows: rows of the leaderboard from an earlier driver, whose trials fill the rungs.
        reports_of: trial id -> its reports in the table.
    """

    def __init__(
        self,
        metric: str,
        mode: str,
        max_steps: int,
        first_rung: int,
        reduction_factor: float,
        rows: Iterable[TableRow] = (),
        reports_of: Callable[[str], Sequence[TableRow]] = lambda id: (),
    ) -> None:
        super().__init__(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=max(1, max_steps),
            grace_period=max(1, min(first_rung, max_steps)),
            reduction_factor=reduction_factor,
        )
        self._reports_of = reports_of
        for row in rows:
            if has_ended(row):
                self.on_trial_add(None, Trial("earlier", stub=True, trial_id=row["id"], config={ID: row["id"]}))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # see the module

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        reports = [row for row in self._reports_of(trial.config[ID]) if _has(row, self._metric)]
        for row in sorted(reports, key=lambda row: row["step"]):
            self._trial_info[trial.trial_id].on_result(trial, row["step"], self._metric_op * row[self._metric])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and trial.config[GIVEN] and result["step"] < self._max_t:
            self._num_stopped -= 1
            return str(TrialScheduler.CONTINUE)
        return decision
