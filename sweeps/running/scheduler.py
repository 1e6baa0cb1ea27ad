"""ASHA stops trials, through Ray Tune.

Tune saves the state of the scheduler, and this project never reads it: a resumed sweep fills it from the run's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from sweeps.recording.tables import TableRow, has_ended
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND


class SweepScheduler(ASHAScheduler):
    """ASHA with rungs measured in training steps. The points of a space are recorded at the rungs but never stopped: a
    comparison needs both sides at the last step. A configuration counts once: the confirmation's trials, which repeat
    configurations with other seeds, are neither recorded nor stopped.

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
        rows: Sequence[TableRow] = (),
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
        self._reports_of, self._ranked = reports_of, metric
        counted = set[str]()
        for row in rows:
            configuration = repr(sorted((name, row[name]) for name in row if name.startswith("config/")))
            repeated = configuration in counted and "config/" in configuration
            if has_ended(row) and row.get("kind") != CONFIRMATION and not repeated:
                counted.add(configuration)
                self.on_trial_add(None, Trial("earlier", stub=True, trial_id=row["id"], config={ID: row["id"]}))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # see the module

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        if trial.config.get(KIND) == CONFIRMATION:
            return
        reports = [row for row in self._reports_of(trial.config[ID]) if row.get(self._ranked) is not None]
        for row in sorted(reports, key=lambda row: row["step"]):
            self._trial_info[trial.trial_id].on_result(trial, row["step"], self._metric_op * row[self._ranked])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial.config.get(KIND) == CONFIRMATION:
            return str(TrialScheduler.STOP if result["step"] >= self._max_t else TrialScheduler.CONTINUE)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and trial.config[GIVEN] and result["step"] < self._max_t:
            self._num_stopped -= 1
            return str(TrialScheduler.CONTINUE)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if trial.config.get(KIND) == CONFIRMATION:
            self.on_trial_remove(tune_controller, trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)
