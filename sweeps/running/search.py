"""Optuna's TPE proposes trials, and those of the confirmation follow, through Ray Tune.

Tune saves the state of the searcher, and this project never reads it: a resumed sweep fills it from the run's tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import Choice, Distribution, Float, Int, SearchSpace, Value, When
from sweeps.planning.confirmation import FIRST_SEED, Confirmation, leaders
from sweeps.planning.confirmation import trial_id as confirmation_id
from sweeps.recording.tables import TableRow, confirming, has_ended
from sweeps.running.optuna_study import Journal, RecentTPE
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, LABEL, PARAMETERS, SEED, TRIAL
from trainables.common.errors import InputError, one_line
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


def trial_number(id: str, letter: str = "t") -> int:
    """The number of a proposed trial, "t012" -> 12, or of the confirmation, "c012"; -1 for the id of anything else."""
    return int(id[1:]) if id[:1] == letter and id[1:].isdigit() else -1


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


class SweepSearch(Searcher):
    """The space's points first, in the order of its queue, then TPE's proposals.

    Trials of an earlier driver that have not ended come before both, with their ids and configurations. Optuna's
    journal is made again from the run's tables, so it may be damaged or missing.

    When all of them have ended, the best configurations and the baseline run again with fresh seeds, if there is a
    confirmation. Optuna does not see these trials. They follow from the results of the search, so a resumed sweep hands
    out those that have not ended.

    A trial that was stopped early is reported to Optuna as pruned, with the values it reported: its last value comes
    from a shorter training and must not compete with those of finished trials.

    Args:
        trials: number of trials of the search.
        max_steps: training steps of a finished trial.
        journal: Optuna's storage file; optuna-dashboard can open it while the sweep runs. An existing one is replaced.
        confirmation: None for a search alone.
        rows: rows of the leaderboard from an earlier driver, without controls.
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
        confirmation: Confirmation | None = None,
        rows: Sequence[TableRow] = (),
        reports_of: Callable[[str], Sequence[TableRow]] = lambda id: (),
        first_seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._space, self._seed, self._max_steps, self._first_seed = space, seed, max_steps, first_seed
        self._trials, self._confirmation = trials, confirmation
        # With the types of the distributions, as Optuna returns them: 1.0 and not 1 for a `Float`.
        typed = {name: partial(stored_value, distribution) for name, distribution in space.distributions.items()}
        self._queue = [
            (point.label, {name: typed[name](value) for name, value in point.values.items()})
            for point in space.points[:trials]
        ]
        self._numbers: dict[str, int] = {}
        self._running: dict[int, optuna.Trial] = {}
        self._waiting: list[dict[str, Any]] = []
        self._to_confirm: list[dict[str, Any]] | None = None
        """The trials of the confirmation that have not started; None while the search has not ended."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for old in journal.parent.glob(f"{journal.name}*"):  # also the lock of a killed driver
            old.unlink()
        self._study = optuna.create_study(
            study_name=space.name,
            storage=JournalStorage(Journal(str(journal))),
            direction="maximize" if mode == "max" else "minimize",
        )
        self._confirming = {
            number: row for row in rows if confirming([row]) and (number := trial_number(row["id"], "c")) >= 0
        }
        """Number -> row of the trials of the confirmation that an earlier driver started."""
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
        state = states[row["status"]] if has_ended(row, bool(self._confirming)) else TrialState.RUNNING
        parameters = self._parameters(row)
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
        self._study.add_trial(frozen)
        if state == TrialState.RUNNING:
            self._running[number] = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id)
            self._waiting.append(config)

    def _parameters(self, row: TableRow) -> dict[str, Value]:
        """The parameters of an earlier trial.

        Raises:
            InputError: they do not belong to the space.
        """
        stored = {name: (d, row.get(f"config/{name}")) for name, d in self._space.distributions.items()}
        try:
            return {name: stored_value(d, value) for name, (d, value) in stored.items() if value is not None}
        except ValueError as error:
            raise InputError(
                f"{row['id']}: its parameters do not belong to the space {self._space.name} ({one_line(error)}); "
                "restore the space's file, or start a new run"
            ) from None

    @property
    def left(self) -> int:
        """The number of trials that `suggest` still hands out; an upper bound while the search has not ended."""
        proposed = len(self._waiting) + max(0, self._trials - len(self._study.get_trials(deepcopy=False)))
        if self._confirmation is None:
            return proposed
        if proposed or self._running:
            return proposed + self._confirmation.trials(self._trials - 1)
        return len(self._confirmations(self._confirmation))

    def suggest(self, trial_id: str) -> Any:
        """The next trial's Tune config; its keys are in `sweeps.trial_config`. None if it depends on running trials;
        FINISHED if there is none.
        """
        number = len(self._study.get_trials(deepcopy=False))
        if self._waiting:
            config = self._waiting.pop(0)
        elif number < self._trials:
            config = self._propose(number)
        elif self._confirmation is None:
            return self.FINISHED
        elif self._running:
            return None
        elif confirmations := self._confirmations(self._confirmation):
            config = confirmations.pop(0)
        else:
            return self.FINISHED
        self._numbers[trial_id] = trial_number(config[ID])
        return config

    def _propose(self, number: int) -> dict[str, Any]:
        self._study.sampler = self._sampler(number)
        if number < len(self._queue):
            offset, parameters = 0, self._queue[number][1]
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

    def _sampler(self, number: int) -> RecentTPE:
        """TPE, seeded for each trial: a resumed sweep proposes the same as one that was not interrupted."""
        with warnings.catch_warnings():
            # Multivariate sampling and the constant liar are marked experimental: their interface may change.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RecentTPE(
                seed=int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0]),
                n_startup_trials=max(len(self._queue), LEAST_RANDOM),
                multivariate=True,
                group=len(self._space.methods) > 1 or any(isinstance(p, When) for p in self._space.parameters.values()),
                constant_liar=True,
            )

    def _config(self, number: int, parameters: Mapping[str, Value], offset: int) -> dict[str, Any]:
        given = number < len(self._queue)
        same = (name for name, values in self._queue if values == parameters)
        return {
            PARAMETERS: dict(parameters),
            ID: f"t{number:03d}",
            LABEL: self._queue[number][0] if given else next(same, ""),
            SEED: offset,
            GIVEN: given,
            KIND: TRIAL,
        }

    def _confirmations(self, confirmation: Confirmation) -> list[dict[str, Any]]:
        """The trials of the confirmation that have not started here and have not ended under an earlier driver.

        Configurations take turns, so that a confirmation that is interrupted has seeds of all.
        """
        if self._to_confirm is None:
            chosen = self._leaders(confirmation)
            # Those that have begun stay, even if results of the search were lost since.
            for number, row in self._confirming.items() if chosen else ():
                chosen[number % len(chosen)] = row["label"], self._parameters(row)
            ended = {number for number, row in self._confirming.items() if has_ended(row)}
            self._to_confirm = [
                {
                    PARAMETERS: dict(parameters),
                    ID: confirmation_id(number),
                    LABEL: label,
                    SEED: FIRST_SEED + number,
                    GIVEN: True,
                    KIND: CONFIRMATION,
                }
                for number, (label, parameters) in enumerate(chosen * confirmation.seeds)
                if number not in ended
            ]
        return self._to_confirm

    def _leaders(self, confirmation: Confirmation) -> list[tuple[str, dict[str, Value]]]:
        """The baseline and the best of the other configurations that finished, with their labels; empty if none did."""
        baseline = self._queue[0]
        found: dict[str, list[float]] = {}
        parameters: dict[str, dict[str, Value]] = {}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            found.setdefault(_text(trial.params), []).append(float(trial.value or 0.0))
            parameters[_text(trial.params)] = dict(trial.params)
        best = leaders(found, _text(baseline[1]), confirmation.finalists, self.mode == "max")
        labels = {_text(values): label for label, values in self._queue}
        return [baseline, *((labels.get(name, ""), parameters[name]) for name in best)] if best else []

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


def _text(parameters: Mapping[str, Value]) -> str:
    """One text per configuration, whatever the order of its parameters."""
    return repr(sorted(parameters.items()))
