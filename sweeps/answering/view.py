"""What every part of the report needs to know of the trials: names, emphasis, values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps import formatting
from sweeps.answering.verdict import Answer
from sweeps.formatting import Row


@dataclass(frozen=True)
class View:
    """Attributes:
    rows: of leaderboard.parquet. trials: those of trials, without controls. controls: the others.
    found: the answer.
    names: id -> the trial as readers see it.
    emphasis: id -> CSS class: trials of the baseline, of the winner's configuration, others; those that did not finish
    are "hollow".
    texts: how trials are written.
    """

    rows: Sequence[Row]
    found: Answer
    names: Mapping[str, str]
    emphasis: Mapping[str, str]
    texts: formatting.TrialTexts

    @classmethod
    def of(cls, rows: Sequence[Row], found: Answer) -> View:
        texts = formatting.TrialTexts.of(rows)
        names = {row["id"]: texts.text(row) for row in rows}
        winner = next((formatting.settings_of(row) for row in rows if row["id"] in found.winner_ids), None)
        return cls(rows, found, names, {row["id"]: _emphasis(row, found, winner) for row in rows}, texts)

    @property
    def varied(self) -> Sequence[str]:
        """Dotted names of the hyperparameters that differ."""
        return self.texts.varied

    @property
    def metric(self) -> str:
        return self.found.metric

    @property
    def larger(self) -> bool:
        """Whether larger values of the objective are better."""
        return self.found.direction == "max"

    @property
    def first(self) -> str:
        """What the first configuration is called: without a confirmation it only leads, and without a proof that it is
        better than the baseline its weights are only those that are kept.
        """
        if self.found.unconfirmed:
            return "leader"
        proven = [one for one in self.found.finalists if one.verdict == "better" and self.found.winner_id in one.trials]
        return "winner" if proven else "kept"

    @property
    def trials(self) -> list[Row]:
        return [row for row in self.rows if row["kind"] != "control"]

    @property
    def controls(self) -> list[Row]:
        return [row for row in self.rows if row["kind"] == "control"]

    @property
    def guides(self) -> list[tuple[str, float]]:
        """(control, its value of the objective), for horizontal lines."""
        return [(row["id"], number(row, self.metric)) for row in self.controls]

    @property
    def legend(self) -> dict[str, str]:
        """CSS class -> text."""
        found = self.found
        won = bool(set(found.winner_ids) & set(found.baseline_ids))
        name = f"{found.baseline_name}, {self.first}" if won else found.baseline_name
        baseline = {"baseline": name} if found.baseline_ids else {}
        winner = {"winner": f"{self.first}, {found.winner_name}"} if found.winner_ids and not won else {}
        return {**winner, **baseline, "other": "other trials"}


def number(row: Row, name: str) -> float:
    """The value as a float; NaN if it is not a number (charts skip NaN)."""
    value = row.get(name)
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else math.nan


def _emphasis(row: Row, found: Answer, winner: dict[str, Any] | None) -> str:
    css = "other"
    if row["id"] in found.baseline_ids:
        css = "baseline"
    elif row["kind"] != "control" and formatting.settings_of(row) == winner:
        css = "winner"
    return css if row["status"] in ("finished", "control") else f"{css} hollow"
