"""Optuna proposes trials, and those of the confirmation follow, through Ray Tune.

Tune saves the state of the searcher, and this project never reads it: a resumed sweep fills it from the run's tables.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import SearchSpace, Value
from sweeps.planning.confirmation import Confirmation
from sweeps.planning.objectives import Constraint, Objective
from sweeps.recording.tables import TableRow, confirming, has_ended
from sweeps.running.clock import Clock
from sweeps.running.confirming import Begun, Configuration, confirmations, finalists
from sweeps.running.optuna_study import Journal, new_trial
from sweeps.running.past_trials import STOPPED, PastTrials, metrics_of
from sweeps.running.samplers import (
    draw,
    grid,
    least_known,
    least_tried,
    make_sampler,
    optuna_distribution,
    stored_value,
    text_of,
)
from sweeps.running.warm_start import Earlier
from sweeps.trial_config import GIVEN, ID, KIND, LABEL, PARAMETERS, SEARCHED, SEED, TRIAL
from trainables.training.results import CHECKPOINT, FAILED, REPEATED, kept_values


def trial_number(id: str, letter: str = "t") -> int:
    """The number of a proposed trial, "t012" -> 12, or of the confirmation, "c012"; -1 for the id of anything else."""
    return int(id[1:]) if id[:1] == letter and id[1:].isdigit() else -1


class SweepSearch(Searcher):
    """The space's points first, in the order of its queue, then the sampler's proposals.

    Trials of an earlier driver that have not ended come before both, with their ids and configurations. Optuna's
    journal is made again from the run's tables, so it may be damaged or missing.

    When all of them have ended, the best configurations and the baseline run again with fresh seeds, if there is a
    confirmation. Optuna does not see these trials. They follow from the results of the search, so a resumed sweep hands
    out those that have not ended.

    A trial that was stopped early is reported to Optuna as pruned, with the values it reported: its last value comes
    from a shorter training and must not compete with those of finished trials. Optuna does not prune trials of several
    objectives; there it is complete with its last values, by which others dominated it, and is never a leader.

    Args:
        trials: number of trials of the search.
        max_steps: training steps of a finished trial.
        journal: Optuna's storage file; optuna-dashboard can open it while the sweep runs. An existing one is replaced.
        confirmation: None for a search alone.
        rows: rows of the leaderboard from an earlier driver, without controls.
        reports_of: trial id -> its reports in the table.
        first_seed: seed of the sweep; a row's seed is counted from it.
        further: more objectives.
        constraints: what a leader must meet.
        sampler: a name of `search_spaces.SAMPLERS`.
        warm: trials of another run, which only the sampler sees.
        confirmation_steps: training steps of the confirmation; 0 for `max_steps`.
        clock: the time budget; None for no limit.
        room: how many trials may run at once now; None for as many as Tune starts.
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
        further: Sequence[Objective] = (),
        constraints: Sequence[Constraint] = (),
        sampler: str = "tpe",
        warm: Sequence[Earlier] = (),
        confirmation_steps: int = 0,
        clock: Clock | None = None,
        room: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._space, self._seed, self._max_steps, self._first_seed = space, seed, max_steps, first_seed
        self._trials, self._confirmation = trials, confirmation
        self._objectives, self._constraints, self._sampler = (Objective(metric, mode), *further), constraints, sampler
        self._past = PastTrials(space, self._objectives, constraints)
        self._clock = clock or Clock(float("inf"), 1, max_steps, max_steps)
        self.closed = False
        """Whether the time budget has ended the search before all of its trials were proposed."""
        # With the types of the distributions, as Optuna returns them: 1.0 and not 1 for a `Float`.
        typed = {name: partial(stored_value, distribution) for name, distribution in space.distributions.items()}
        self._queue = [
            (point.label, {name: typed[name](value) for name, value in point.values.items()})
            for point in space.points[:trials]
        ]
        self._tried: list[str] = []
        """`text_of` the configurations of this search's trials, by number."""
        self._grid = grid(space) if sampler == "grid" else {}
        self._modelled = False
        """Whether a model proposes. Once it does, it goes on."""
        self._numbers: dict[str, int] = {}
        self.handed_out: list[str] = []
        """Ids of the trials that `suggest` has returned. Tune may be interrupted before it starts them."""
        self._running: dict[int, optuna.Trial] = {}
        self._room = room
        self._live: set[str] = set()
        """Tune's ids of the trials that were handed out and have not ended."""
        self._waiting: list[dict[str, Any]] = []
        self._to_confirm: list[dict[str, Any]] | None = None
        """The trials of the confirmation that have not started; None while the search has not ended."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings advise on packages, not on the sweep
        for old in journal.parent.glob(f"{journal.name}*"):  # also the lock of a killed driver
            old.unlink()
        self._study = optuna.create_study(
            study_name=space.name,
            storage=JournalStorage(Journal(str(journal))),
            directions=["maximize" if one.direction == "max" else "minimize" for one in self._objectives],
        )
        for one in warm:
            state = TrialState.COMPLETE if one.steps >= max_steps else TrialState.PRUNED
            reports = [{**one.values, "step": one.steps}]
            attributes = {"warm_start": one.source}
            self._study.add_trial(self._past.trial(state, one.parameters, one.values, attributes, reports))
        self._warm = len(warm)
        steps = confirmation_steps or max_steps
        self._begun = {
            number: Begun(
                row["label"],
                self._past.parameters(row),
                row["seed"] - first_seed,
                row.get(SEARCHED) or 0,
                has_ended(row, confirm_steps=steps),
            )
            for row in rows
            if confirming([row]) and (number := trial_number(row["id"], "c")) >= 0
        }
        """Number -> trial of the confirmation that an earlier driver started."""
        known = {number: row for row in rows if (number := trial_number(row["id"])) >= 0}
        count = min(max(known, default=-1) + 1, trials)
        self._chosen = self._leaders_are_chosen(count)
        for number in range(count):
            self._know(number, known.get(number), reports_of)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # see the module

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # all set at the start

    def save(self, checkpoint_path: str) -> None:
        """See the module."""

    def restore(self, checkpoint_path: str) -> None:
        """See the module."""

    def _leaders_are_chosen(self, known: int) -> bool:
        """Whether the confirmation has begun with the leaders of all trials of the search that an earlier driver began.
        Then none of these may join the leaders.

        Args:
            known: number of these trials. A time budget may have closed the search before all that were asked for.
        """
        among = max((trial.searched for trial in self._begun.values()), default=-1)
        whole = self._trials if not self._clock.limited else known  # without a limit, missing trials were added since
        return among == 0 or among >= whole

    def _know(self, number: int, row: TableRow | None, reports_of: Callable[[str], Sequence[TableRow]]) -> None:
        """Adds an earlier trial to the study; if it has not ended, it waits to be handed out.

        Args:
            row: None if the record of this trial is lost; then one is proposed again.
        """
        if row is None:
            self._waiting.append(self._propose(number))
            return
        states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
        state = states[row["status"]] if has_ended(row, self._chosen) else TrialState.RUNNING
        parameters = self._past.parameters(row)
        config = self._config(number, parameters, row["seed"] - self._first_seed)
        reports = [report for report in reports_of(row["id"]) if report.get(self.metric) is not None]
        self._study.add_trial(self._past.trial(state, parameters, row, self._attributes(config), reports))
        text = text_of(parameters)
        self._tried.append(text)
        seconds = row.get("busy_seconds" if self._clock.reused else "wall_seconds")
        if seconds:
            self._clock.knows(text, seconds, row.get("steps") or 0)
        if state == TrialState.RUNNING:
            self._running[number] = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id)
            self._waiting.append(config)

    @property
    def trials(self) -> int:
        """The number of trials of the search that was asked for."""
        return self._trials

    @property
    def searched(self) -> int:
        """The number of trials of the search: those proposed so far if the time budget has ended it, else all."""
        return min(len(self._tried), self._trials) if self.closed else self._trials

    @property
    def left(self) -> int:
        """The number of trials that `suggest` still hands out; an upper bound while the search has not ended."""
        self._close_if_late()
        proposed = self._to_propose
        if self._confirmation is None:
            return proposed
        if proposed or self._running:
            begun = len({text_of(trial.parameters) for trial in self._begun.values()})
            return proposed + self._confirmation.trials(self._trials - 1) + begun * self._confirmation.seeds
        return len(self._confirmations(self._confirmation))

    @property
    def expected(self) -> int:
        """The number of trials that `suggest` is still expected to hand out: as `left`, but leaders that were chosen
        stay when a trial of the search is trained again.
        """
        left, proposed = self.left, self._to_propose
        if self._confirmation is None or not self._chosen or not (proposed or self._running):
            return left
        ended = sum(trial.ended for trial in self._begun.values())
        planned = self._confirmation.trials(self._trials - 1)
        return min(left, proposed + max(len(self._begun), planned) - ended)

    @property
    def _to_propose(self) -> int:
        """The number of trials of the search that `suggest` still hands out."""
        return len(self._waiting) + max(0, self.searched - len(self._tried))

    @property
    def waiting(self) -> list[str]:
        """The ids of those of them that have one. An earlier driver may have begun them."""
        return [config[ID] for config in (*self._waiting, *(self._to_confirm or ()))]

    def suggest(self, trial_id: str) -> Any:
        """The next trial's Tune config; its keys are in `sweeps.trial_config`. None if it depends on running trials, or
        if there is no room for it yet; FINISHED if there is none.
        """
        if self._room and len(self._live) >= self._room():
            return None
        number = len(self._tried)
        self._close_if_late()
        if self._waiting:
            config = self._waiting.pop(0)
        elif number < self.searched:
            config = self._propose(number)
        elif self._running and self._confirmation is not None:
            return None
        elif self._confirmation is not None and (left := self._confirmations(self._confirmation)):
            config = left.pop(0)
        else:
            return self.FINISHED
        self._numbers[trial_id] = trial_number(config[ID])
        self.handed_out.append(config[ID])
        self._live.add(trial_id)
        self._clock.begins(trial_id)
        return config

    def _close_if_late(self) -> None:
        """Ends the search if another trial and the confirmation after it would not end within the time budget."""
        if not self.closed and self._clock.limited and not self._waiting and 0 < len(self._tried) < self._trials:
            likely = [text_of(parameters) for _, parameters in self._leaders(self._confirmation)]
            wanted = self._confirmation if likely else None  # nothing to confirm yet: then at least leaders
            if wanted and len(self._tried) <= wanted.finalists:  # a smaller one is better than nothing to confirm
                wanted = wanted.smaller(1)[-1]
            self.closed = not self._clock.has_time(wanted, likely)

    def _propose(self, number: int) -> dict[str, Any]:
        given = number < len(self._queue)
        if given or self._sampler == "grid":
            parameters = self._queue[number][1] if given else least_tried(self._grid, self._tried, self._seed)
            distributions = {name: optuna_distribution(self._space.distributions[name]) for name in parameters}
            self._study.add_trial(
                optuna.trial.create_trial(state=TrialState.RUNNING, params=parameters, distributions=distributions)
            )
            trial = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id)
        else:
            self._modelled = self._modelled or self._knows_enough()
            self._study.sampler = make_sampler(
                self._sampler, self._space, self._seed, number, self._modelled, self._study.sampler
            )
            trial = new_trial(self._study)
            parameters = draw(self._space, trial)
            # TPE also notes what it drew for parameters that do not exist here, and would take that into account: then
            # a resumed sweep, which knows only the existing ones, would propose other values.
            self._study._storage.set_trial_system_attr(trial._trial_id, "tpe:relative_params:0", "")
        # A configuration proposed again gets another seed: the same trial would give the same result. Points have the
        # sweep's seed.
        text = text_of(parameters)
        offset = 0 if given else self._tried.count(text)
        self._tried.append(text)
        self._running[number] = trial
        config = self._config(number, parameters, offset)
        for name, value in self._attributes(config).items():
            trial.set_user_attr(name, value)
        return config

    def _knows_enough(self) -> bool:
        """Whether so many configurations have a result that a model proposes the next one."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        points = len({text_of(values) for _, values in self._queue})
        return len({text_of(trial.params) for trial in ended}) >= least_known(points)

    def _config(self, number: int, parameters: Mapping[str, Value], offset: int) -> dict[str, Any]:
        given = number < len(self._queue)
        named = [*self._queue[number : number + 1], *self._queue]  # its own point first: others may have equal values
        label = next((name for name, values in named if values == parameters), "")
        return {
            PARAMETERS: dict(parameters),
            ID: f"t{number:03d}",
            LABEL: label,
            SEED: offset,
            GIVEN: given,
            KIND: TRIAL,
        }

    def _confirmations(self, confirmation: Confirmation) -> list[dict[str, Any]]:
        """The trials of the confirmation that have not started here and have not ended under an earlier driver."""
        if self._to_confirm is None:
            chosen, begun = self._leaders(confirmation), self._begun
            plans = [
                confirmations(one, chosen[: one.finalists + 1], begun, self.searched)
                for one in confirmation.smaller(len(chosen) - 1)
            ]
            # If none fits, one that has begun misses trials: without them, nothing may be called better.
            rest = plans[-1] if begun and plans else confirmations(confirmation, [], begun, self.searched)
            self._to_confirm = next((plan for plan in plans if self._clock.fits(map(_text_of, plan))), rest)
        return self._to_confirm

    def _leaders(self, confirmation: Confirmation | None) -> list[Configuration]:
        if confirmation is None:
            return []
        own = self._study.get_trials(deepcopy=False)[self._warm :]
        ended = [trial for trial in own if trial.state == TrialState.COMPLETE and STOPPED not in trial.user_attrs]
        return finalists(ended, self._queue, self._objectives, self._constraints, confirmation.finalists)

    def _attributes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What optuna-dashboard shows besides parameters and values."""
        return {"id": config[ID], "label": config[LABEL], "seed": self._first_seed + config[SEED]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        trial = self._running.get(self._numbers[trial_id])
        if trial is None or self.metric not in result:
            return
        if result.get(REPEATED):  # it continues from a checkpoint
            self._clock.begins(trial_id, result["step"])
        busy = result.get("train/busy_seconds") or 0.0
        self._clock.reports(trial_id, text_of(trial.params), result["step"], busy)
        if len(self._objectives) == 1:
            self._report(trial, result)

    def _report(self, trial: optuna.Trial, result: Mapping[str, Any]) -> None:
        with warnings.catch_warnings():
            # After a restart, Optuna keeps the first value of a step and warns about the second.
            warnings.simplefilter("ignore", UserWarning)
            trial.report(result[self.metric], result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)
        number = self._numbers[trial_id]
        trial = self._running.pop(number, None)
        if trial is None:
            return
        result = result or {}
        kept = kept_values(result)
        values = [kept[one.metric] for one in self._objectives if kept.get(one.metric) is not None]
        if error or FAILED in result or len(values) < len(self._objectives):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        for name, value in metrics_of(kept).items():
            trial.set_user_attr(name, value)
        if result.get(CHECKPOINT):
            trial.set_user_attr("picture", f"trials/t{number:03d}/{result[CHECKPOINT]}/grid.png")
        for constraint in self._constraints:
            trial.set_constraint(str(constraint), constraint.excess(kept))
        if result["step"] >= self._max_steps:
            self._study.tell(trial, values)
        elif len(values) == 1:
            self._report(trial, result)  # Tune does not pass on the result at which ASHA stops a trial
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(STOPPED, True)
            self._study.tell(trial, values)


def _text_of(config: Mapping[str, Any]) -> str:
    return text_of(config[PARAMETERS])
