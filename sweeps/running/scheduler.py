"""ASHA stops trials, through Ray Tune.

Tune saves the state of the scheduler, and this project never reads it: a resumed sweep fills it from the run's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.formatting import CONFIG, configuration_of, settings_of
from sweeps.planning.objectives import Objective
from sweeps.recording.tables import TableRow, confirming, plain_value
from sweeps.running.failing_nodes import FailingNodes
from sweeps.running.rungs import Rungs
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, PARAMETERS
from trainables.training.results import kept_values

BASELINE = "t000"  # the first trial of a sweep


class SweepScheduler(FIFOScheduler):
    """ASHA with rungs measured in training steps. It records the points of a space at the rungs but never stops them: a
    comparison needs both sides at the last step. Trials of the confirmation are neither recorded nor stopped: they
    repeat the best configurations, so that a search that goes on afterwards would stop too much.

    Args:
        metric, mode: the objective, and "max" or "min".
        first_rung: training steps of the first rung.
        rows: rows of the leaderboard from an earlier driver, whose trials fill the rungs.
        reports_of: trial id -> its reports in the table.
        further: more objectives, for multi-objective ASHA.
        keeps_best: whether a trial is judged by its best step so far (`training.keep=best`), with one objective.
        over: whether the time for the search is over. Then its trials stop at their next report, except the first one,
            the baseline.
        out_of_time: called with the id of each trial that stops for this reason.
        nodes: keeps trials away from nodes on which they fail; None to leave that out.
    """

    def __init__(
        self,
        metric: str,
        mode: str,
        max_steps: int,
        first_rung: int,
        reduction_factor: float,
        rows: Sequence[TableRow] = (),
        reports_of: Callable[[str], Sequence[TableRow]] = lambda id: (),
        further: Sequence[Objective] = (),
        over: Callable[[], bool] = lambda: False,
        out_of_time: Callable[[str], None] = lambda id: None,
        keeps_best: bool = False,
        nodes: FailingNodes | None = None,
    ) -> None:
        super().__init__()
        self._objectives = (Objective(metric, mode), *further)
        self._max_steps = max(1, max_steps)
        self._reports_of, self._keeps_best = reports_of, keeps_best
        self._over, self._out_of_time = over, out_of_time
        self._nodes = nodes
        self._rungs = Rungs(max(1, min(first_rung, max_steps)), self._max_steps, reduction_factor)
        for row in rows:
            if not confirming([row]):  # also of trials that failed, which have reached their rungs under that driver
                self._record_earlier(row["id"], _of_row(row))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # see the module

    def _record_earlier(self, id: str, configuration: str) -> None:
        before: list[float] = []
        for row in sorted(self._reports_of(id), key=lambda row: row["step"]):
            if gains := self._gains(row):
                before = max(before, gains) if self._keeps_best else gains
                self._rungs.reached(id, row["step"], before, configuration)

    def _gains(self, row: Mapping[str, Any]) -> list[float]:
        """The objectives of a report, larger is better; empty if one is missing."""
        values = [row.get(objective.metric) for objective in self._objectives]
        gains = [o.gain(value) for o, value in zip(self._objectives, values, strict=True) if value is not None]
        return gains if len(gains) == len(values) else []

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if trial.config.get(KIND) != CONFIRMATION:
            self._record_earlier(trial.config[ID], _configuration(trial))
        if self._nodes:
            self._nodes.place(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if self._nodes:
            self._nodes.failed(trial)
            self._nodes.place(trial)  # now: Tune files a trial that is tried again under its resources

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        gains = self._gains(kept_values(result))
        if trial.config.get(KIND) == CONFIRMATION or not gains or "step" not in result:
            return str(TrialScheduler.CONTINUE)
        id, step = trial.config[ID], result["step"]
        if step >= self._max_steps:
            return str(TrialScheduler.STOP)  # `on_trial_complete` records it
        if self._rungs.reached(id, step, gains, _configuration(trial)) and not trial.config[GIVEN]:
            return str(TrialScheduler.STOP)
        if self._over() and id != BASELINE:
            self._out_of_time(id)
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        gains = self._gains(kept_values(result))
        if trial.config.get(KIND) != CONFIRMATION and gains and "step" in result:
            self._rungs.reached(trial.config[ID], result["step"], gains, _configuration(trial))


def _configuration(trial: Any) -> str:
    """That of its row; empty if it has no parameters."""
    return _of_row({CONFIG + name: plain_value(value) for name, value in trial.config.get(PARAMETERS, {}).items()})


def _of_row(row: Mapping[str, Any]) -> str:
    return configuration_of(row) if settings_of(row) else ""
