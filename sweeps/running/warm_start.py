"""Trials of another run, which only the sampler sees: `--warm-start RUN`.

They are copied into the new run's folder, so that it can be resumed without the other run. Values are comparable only
if they were measured after as many steps and on the same validation images; other runs are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search_spaces import SearchSpace, Value
from sweeps.planning.plan import Plan
from sweeps.planning.run_bucket import run_to_read
from sweeps.planning.run_settings import read_record
from sweeps.recording.tables import LEADERBOARD, TableRow, read_rows
from sweeps.running.samplers import stored_value
from sweeps.trial_config import TRIAL
from trainables.common.errors import InputError, one_line
from trainables.common.paths import write_durably
from trainables.settings import flatten

WARM_START = "warm_start.json"


@dataclass(frozen=True)
class Earlier:
    """A trial of another run.

    Attributes:
        parameters: those of the new run's space.
        values: its metrics at its last step.
        steps: fewer than those of a finished trial if ASHA stopped it.
        source: the run's folder and the trial's id, for people.
    """

    parameters: dict[str, Value]
    values: dict[str, float]
    steps: int
    source: str


def warm_start_of(plan: Plan) -> list[Earlier]:
    """The trials that `--warm-start` names, with a line on the terminal about them; empty without one.

    Raises:
        InputError: see `read_warm_start`.
    """
    named = plan.question.settings.warm_start
    if not named:
        return []
    run = run_to_read("--warm-start", named)
    objectives = [one.metric for one in plan.objectives]
    warm, others = read_warm_start(run, plan.question.space, flatten(plan.question.trial), plan.stores, objectives)
    differing = f"; its settings differ in {', '.join(others)}" if others else ""
    print(f"warm start: {len(warm)} trials of {run}{differing}", file=sys.stderr)
    return warm


def read_warm_start(
    run: Path, space: SearchSpace, trial: Mapping[str, Any], stores: Mapping[str, str], objectives: Sequence[str]
) -> tuple[list[Earlier], list[str]]:
    """The trials of another run that have ended and belong to this space, and the names of settings that were others.

    A parameter that the other run did not search has there the value of its settings. A parameter that only the other
    run searched must have the value that it has here.

    Args:
        trial: dotted name -> value, of this run's baseline.
        stores: of this run, see `Plan.stores`.
        objectives: of this run.

    Raises:
        InputError: not the folder of a run, one that is not comparable, or none of its trials belongs to this space.
    """
    flag = f"--warm-start {run}"
    record = read_record(run, flag)
    try:
        settings, made = dict(record["trial"]), dict(record["stores"])
        rows = [row for row in read_rows(run / LEADERBOARD) if row["kind"] == TRIAL]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{flag}: its files cannot be read ({one_line(error)})") from None
    steps = trial["training.max_steps"]
    if settings.get("training.max_steps") != steps:
        raise InputError(f"{flag}: trained {settings.get('training.max_steps')} steps; expected {steps}, as this sweep")
    if any(made.get(name, store) != store for name, store in stores.items() if name.startswith("validation")):
        raise InputError(f"{flag}: was validated on other images; expected a run with this sweep's data and pairs")
    for name, before in (("metrics.border", 0), ("training.keep", "last")):  # values of runs that did not have them
        if settings.get(name, before) != trial[name]:
            raise InputError(
                f"{flag}: measured with {name}={settings.get(name, before)}; expected {trial[name]}, as this sweep"
            )
    ended = [row for row in rows if row["status"] in ("finished", "stopped") and (row["steps"] or not steps)]
    if not ended:
        raise InputError(f"{flag}: none of its trials has ended; expected a run with finished trials")
    for metric in objectives:
        if all(row.get(metric) is None for row in ended):
            raise InputError(f"{flag}: did not measure {metric}; expected a run with this sweep's metrics")
    found = []
    for row in ended:
        parameters = _parameters(row, space, trial, settings)
        values = {name: v for name, v in row.items() if name.startswith("val/") and isinstance(v, float)}
        if parameters is not None and all(metric in values for metric in objectives):
            found.append(Earlier(parameters, values, row["steps"], f"{run.name} {row['id']}"))
    if not found:
        raise InputError(
            f"{flag}: none of its {len(ended)} trials belongs to the space {space.name}, within its ranges and with "
            "this sweep's settings"
        )
    searched = {*space.distributions, *(name.removeprefix("config/") for row in ended for name in row)}
    ours = {name: list(value) if isinstance(value, tuple) else value for name, value in trial.items()}
    others = [name for name, value in ours.items() if name not in searched and settings.get(name, value) != value]
    return found, [name for name in others if name != "training.seed"]


def _parameters(
    row: TableRow, space: SearchSpace, here: Mapping[str, Any], there: Mapping[str, Any]
) -> dict[str, Value] | None:
    """The trial's parameters in this space; None if it does not belong to it."""
    searched = {name.removeprefix("config/"): v for name, v in row.items() if name.startswith("config/")}
    for name, value in searched.items():
        if value is not None and name not in space.distributions and value != here.get(name):
            return None
    parameters: dict[str, Value] = {}
    try:
        for name, distribution in space.distributions.items():
            if name in space.active(parameters):
                value = searched.get(name)
                parameters[name] = stored_value(distribution, there[name] if value is None else value)
    except (ValueError, KeyError, TypeError):
        return None
    return parameters


def write_trials(folder: Path, trials: Sequence[Earlier]) -> None:
    """Keeps them in the run's folder."""
    if trials:
        write_durably(folder / WARM_START, json.dumps([asdict(one) for one in trials], indent=1))


def kept_trials(folder: Path) -> list[Earlier]:
    """Those of `write_trials`; none if the run had no warm start.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / WARM_START
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [Earlier(dict(o["parameters"]), dict(o["values"]), int(o["steps"]), str(o["source"])) for o in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error)}); delete it to go on without a warm start"
        ) from None
