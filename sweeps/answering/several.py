"""What the answer of a sweep with several objectives says besides that of the first one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from sweeps import formatting
from sweeps.answering.verdict import Answer
from sweeps.formatting import Row, configuration_of, metric_text, metric_title, metric_unit
from sweeps.planning.objectives import Constraint, Objective, feasible
from sweeps.planning.pareto import knee, non_dominated
from sweeps.trial_config import TRIAL


def pareto_front(rows: Sequence[Row], objectives: Sequence[Objective]) -> list[list[Row]]:
    """The front of the configurations that finished in the search, by their means on the validation photographs, best
    first in the first objective; of each configuration its trials.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        measured = all(row.get(one.metric) is not None for one in objectives)
        if row["kind"] == TRIAL and row["status"] == "finished" and measured:
            groups.setdefault(configuration_of(row), []).append(row)
    if not groups:
        return []
    trials = list(groups.values())
    gains = _gains(trials, objectives)
    return [trials[k] for k in sorted(non_dominated(gains), key=lambda k: -gains[k, 0])]


def of_several(
    objectives: Sequence[Objective], constraints: Sequence[Constraint], rows: Sequence[Row], others: Sequence[Answer]
) -> list[str]:
    """The front in one sentence, and the verdict of each further objective.

    Args:
        others: the answers of the further objectives; without them there is nothing to say.
    """
    if not others:
        return []
    accepted = [row for row in rows if feasible(constraints, row)]
    front, names = pareto_front(accepted, objectives), formatting.TrialTexts.of(rows)
    texts = []
    for group in front:
        values = (f"{metric_text(o.metric, _mean(group, o.metric))}{metric_unit(o.metric)}" for o in objectives)
        texts.append(f"{names.text(group[0])} {' and '.join(values)}")
    if len(front) > 2:
        texts[knee(_gains(front, objectives))] += " (knee)"
    titles = " and ".join(metric_title(one.metric) for one in objectives)
    said = [f"The front of the search in {titles}, on the validation photographs: {'; '.join(texts)}."] if texts else []
    return said + [f"In {metric_title(other.metric)}: {other.verdict}" for other in others]


def _gains(trials: Sequence[Sequence[Row]], objectives: Sequence[Objective]) -> np.ndarray:
    return np.array([[one.gain(_mean(group, one.metric)) for one in objectives] for group in trials])


def _mean(rows: Sequence[Row], metric: str) -> float:
    return statistics.fmean(row[metric] for row in rows)
