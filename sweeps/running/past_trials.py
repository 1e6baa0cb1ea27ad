"""Trials of an earlier driver and of other runs, from their rows in the tables, as trials of Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search_spaces import SearchSpace, Value
from sweeps.planning.objectives import Constraint, Objective
from sweeps.recording.tables import TableRow
from sweeps.running.samplers import optuna_distribution, stored_value
from trainables.common.errors import InputError, one_line

STOPPED = "stopped"
"""User attribute of a trial that ASHA stopped, in a search for several objectives."""


class PastTrials:
    """Makes Optuna's trials from rows.

    Args:
        objectives: the first one decides in ASHA.
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> None:
        self._space, self._objectives, self._constraints = space, objectives, constraints

    def trial(
        self,
        state: TrialState,
        parameters: Mapping[str, Value],
        row: Mapping[str, Any],
        attributes: Mapping[str, Any],
        reports: Sequence[TableRow] = (),
    ) -> FrozenTrial:
        """A trial for the study.

        Args:
            row: metrics of its last report.
            attributes: for optuna-dashboard.
            reports: of one objective.
        """
        metric = self._objectives[0].metric
        values = [row.get(one.metric) for one in self._objectives]
        extra: dict[str, Any] = {}
        if len(values) == 1:
            extra["intermediate_values"] = {report["step"]: report[metric] for report in reports}
            if state == TrialState.PRUNED:
                values = [report[metric] for report in sorted(reports, key=lambda report: report["step"])][-1:]
        elif state == TrialState.PRUNED:
            state, attributes = TrialState.COMPLETE, {**attributes, STOPPED: True}
        if None in values and state == TrialState.COMPLETE:
            state = TrialState.FAIL
        if state in (TrialState.COMPLETE, TrialState.PRUNED):
            extra["values"] = values or None
            extra["constraints"] = {str(one): one.excess(row) for one in self._constraints}
        if row.get("checkpoint"):
            attributes = {**attributes, "picture": f"{row['checkpoint']}/grid.png"}
        return optuna.trial.create_trial(
            state=state,
            params=dict(parameters),
            distributions={name: optuna_distribution(self._space.distributions[name]) for name in parameters},
            user_attrs={**attributes, **metrics_of(row)},
            **extra,
        )

    def parameters(self, row: TableRow) -> dict[str, Value]:
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


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row or report on the validation photographs."""
    return {name: value for name, value in row.items() if name.startswith("val/") and isinstance(value, float)}
