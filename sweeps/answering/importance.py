"""Which hyperparameters mattered: Optuna's importances, and the objective over every hyperparameter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from html import escape
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from search_spaces import Choice, Distribution, Float
from sweeps import formatting
from sweeps.answering.charts import Dot, scatter
from sweeps.answering.markup import bars, note
from sweeps.answering.view import View, number
from sweeps.trial_config import TRIAL
from trainables.settings import TrialSettings
from trainables.settings.setting import meanings

LEAST_CONFIGURATIONS = 20  # with fewer, one good one decides: "t_max 95 %" of six in which nothing differed
_BEST = 4  # configurations that count as good, at least; Optuna's share of 10 % is one of ten


def importances(view: View, distributions: Mapping[str, Distribution]) -> dict[str, float]:
    """The importance of each hyperparameter, the largest first; their sum is 1. Empty with too few configurations.

    PED-ANOVA of Watanabe et al. (IJCAI 2023), as Optuna computes it: how differently the good configurations are
    distributed from all that finished. Only finished trials of the search with the most steps count.

    Args:
        distributions: dotted name -> distribution of the space.
    """
    found = [row for row in view.rows if row["kind"] == TRIAL and row["status"] == "finished"]
    found = [row for row in found if math.isfinite(number(row, view.metric))]
    most = max((row["steps"] or 0 for row in found), default=0)
    configurations: dict[str, tuple[dict[str, Any], list[float]]] = {}
    for row in found:
        settings = {name: value for name in distributions if (value := row.get(formatting.CONFIG + name)) is not None}
        if (row["steps"] or 0) == most:
            configurations.setdefault(repr(settings), (settings, []))[1].append(row[view.metric])
    names = {name for settings, _ in configurations.values() for name in settings}
    if len(configurations) < LEAST_CONFIGURATIONS or len(names) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if view.larger else "minimize")
    for settings, values in configurations.values():
        try:
            study.add_trial(
                optuna.trial.create_trial(
                    params=settings,
                    distributions={name: _optuna(distributions[name]) for name in settings},
                    value=math.fsum(values) / len(values),
                )
            )
        except ValueError:  # a table keeps a column of mixed types as text, so a value may be outside of its space
            return {}
    share = max(0.1, _BEST / len(configurations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental arguments, and of parameters that never varied
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=share))


def importance_bars(found: Mapping[str, float]) -> str:
    """The importances as bars with a note."""
    if not found:
        return ""
    text = (
        "Importance by PED-ANOVA (Optuna) among finished configurations of the search: how differently the good ones "
        "are distributed from all. It says where to look, not what is better; with few configurations it is rough."
    )
    return note(text) + bars(found, "Importance of each hyperparameter")


def slices(view: View) -> list[str]:
    """Charts of the objective over every hyperparameter that varied, with the controls as lines, over its meaning."""
    charts, told = [], meanings(TrialSettings)
    for name in view.varied:
        values = [row.get(formatting.CONFIG + name) for row in view.trials]
        if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
            categories: list[str] = []
            xs = [math.nan if value is None else float(value) for value in values]
        else:
            categories = sorted({str(value) for value in values if value is not None})
            xs = [math.nan if value is None else float(categories.index(str(value))) for value in values]
        dots = [
            Dot(view.names[row["id"]], x, number(row, view.metric), view.emphasis[row["id"]])
            for row, x in zip(view.trials, xs, strict=True)
        ]
        if len({dot.x for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)}) > 1:
            chart = scatter(dots, name, formatting.metric_title(view.metric), view.guides, categories)
            text = told.get(name, "").replace("`", "")
            charts.append(chart + (f"<figcaption>{escape(text[0].upper() + text[1:])}</figcaption>" if text else ""))
    return charts


def _optuna(distribution: Distribution) -> BaseDistribution:
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.values)
    kind = FloatDistribution if isinstance(distribution, Float) else IntDistribution
    return kind(distribution.low, distribution.high, log=distribution.log)  # type: ignore[arg-type]
