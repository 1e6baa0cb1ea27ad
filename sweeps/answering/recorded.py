"""The answer of a run from its own files, with the objectives, constraints and lengths that its settings name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.answering.comparison import Answer, answer, baseline_trials
from sweeps.formatting import Row, configuration_of
from sweeps.planning.objectives import parse_constraint, split_objectives
from sweeps.planning.run_settings import UNCONFIRMED
from sweeps.trial_config import CONFIRMATION


def recorded_answer(
    record: Mapping[str, Any], rows: Sequence[Row], per_image: Sequence[Row], metric: str = ""
) -> Answer:
    """The answer as the run's report gives it. Nothing is called better before the whole confirmation has ended.

    Args:
        record: content of settings.yaml. rows, per_image: those of the tables.
        metric: "val/psnr", the metric to answer in; by default the run's first objective.
    """
    command, trial = record.get("command") or {}, record.get("trial") or {}
    objectives = record.get("objectives") or split_objectives(command.get("objective") or "") or [record["objective"]]
    constraints = tuple(parse_constraint(text) for text in command.get("constraint") or ())
    return answer(
        rows,
        per_image,
        metric or record["objective"],
        baseline_trials(rows),
        unconfirmed=_unconfirmed(
            rows, command.get("confirm_steps") or trial.get("training.max_steps") or 0, record.get(UNCONFIRMED)
        ),
        objectives=len(objectives),
        constraints=constraints,
    )


def _unconfirmed(rows: Sequence[Row], whole: int, said: str | None) -> str:
    """Why nothing may be called better.

    Args:
        whole: steps of a trial of the confirmation.
        said: by the sweep when it ended; None if it has not, or is of an earlier version.
    """
    if any(row["status"] in ("running", "interrupted") for row in rows):
        return "the sweep has not ended"
    if said is not None:
        return said
    confirmed = [row for row in rows if row["kind"] == CONFIRMATION]
    short = any(row["steps"] < whole for row in confirmed if row["status"] == "finished")
    seeds = Counter(configuration_of(row) for row in confirmed)  # fewer for some: the time budget has ended it
    return "the confirmation has not finished" if short or len(set(seeds.values())) > 1 else ""
