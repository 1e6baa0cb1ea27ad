"""What `--resume` may change: more trials, longer finalists, more time, and where the inputs are now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sweeps.planning.question import Started, resolve
from sweeps.planning.settings import SweepSettings, field_name
from trainables.common.errors import InputError
from trainables.settings.roles import FLAGS, PATHS, WEIGHT_PATHS

CHANGING = ("--trials", "--max-steps", "--time-budget", "--budget-usd", "--price-per-hour")
"""Flags that change a run; the others that `--resume` takes only say where and how it runs."""
DATA = ("--data", "--data-input", "--data-target")
MOVED = (*DATA, "--checkpoint", "--set")
"""Flags for inputs that are elsewhere now. Their content must be the same: see `inputs.check_same`, and the names of
prepared data, which are hashes of what it is made of."""
_ELSEWHERE = ("--address", "--store", *MOVED)
ALLOWED = ("--resume", "--repeat-lost", "--space", "--stop-seconds", "--dry-run", *_ELSEWHERE, *CHANGING)


def spent_seconds(rows: Iterable[Mapping[str, Any]], recorded: float | None, concurrent: int) -> float:
    """The time that a run has taken.

    Args:
        rows: its trials.
        recorded: seconds of its commands; None in a run of a version that did not record them. That one is estimated.
        concurrent: number of trials that ran at once, for the estimate.
    """
    if recorded is not None:
        return recorded
    return math.fsum(row.get("wall_seconds") or 0.0 for row in rows) / max(1, concurrent)


def moved(settings: SweepSettings, given: Mapping[str, Any]) -> SweepSettings:
    """The settings of a run whose photographs or weights are elsewhere now.

    Args:
        given: flag -> value, for those of `MOVED` that were given; of `--set`, pairs.

    Raises:
        InputError: `--set` of something that is not the place of an input.
    """
    pairs = dict(settings.set)
    if set(DATA) & set(given):  # all of them together say where photographs are
        settings = replace(settings, **{field_name(flag): given.get(flag, "") for flag in DATA})
        pairs = {name: value for name, value in pairs.items() if not name.startswith("data.") or name not in PATHS}
    if "--checkpoint" in given:
        settings = replace(settings, checkpoint=given["--checkpoint"])
        pairs.pop("checkpoint", None)
    for name, value in given.get("--set", ()):
        if name not in WEIGHT_PATHS or name in FLAGS:
            places = ", ".join(one for one in WEIGHT_PATHS if one not in FLAGS)
            raise InputError(
                f"--set {name}={value}: cannot be given with --resume: a run continues with its own settings; expected "
                f"the place of weights that have been moved: {places}"
            )
        pairs[name] = value
    return replace(settings, set=tuple(pairs.items()))


def continued(
    settings: SweepSettings, given: Mapping[str, Any], spent: float, started: Started | None = None
) -> tuple[SweepSettings, tuple[str, ...]]:
    """The settings of a run that goes on, and notes for its user.

    A limit of time or money that is given counts from this command on, and replaces the run's own limits.

    Args:
        settings: of the run so far.
        given: flag -> value, for those of `CHANGING` that were given.
        spent: seconds that the run has taken so far. Limits in the settings are those of the whole run.
        started: what it was started with.

    Raises:
        InputError: fewer trials or steps than the run has, or no finalists to train longer.
    """
    notes: tuple[str, ...] = ()
    question = resolve(settings, started)
    if trials := given.get("--trials"):
        if trials < question.trials:
            raise InputError(f"--trials {trials}: the run has {question.trials} already; expected as many or more")
        settings = replace(settings, trials=trials)
    if steps := given.get("--max-steps"):
        known = question.confirm_steps
        if not question.space.trains:
            raise InputError(f"--max-steps {steps}: the space {settings.space} trains nothing")
        if not settings.confirm:
            raise InputError(
                f"--max-steps {steps}: the run has no confirmation (--confirm 0), so no finalists to train"
            )
        if steps < known:
            raise InputError(f"--max-steps {steps}: the finalists train {known} already; expected as many or more")
        settings = replace(settings, confirm_steps=steps)
        training = question.trial.training
        if steps > known and training.schedule != "constant":
            notes = (
                f"training.schedule={training.schedule} ends at its last step: finalists that ended at step {known} "
                f"continue on the schedule of {steps} steps, so their learning rate rises once",
            )
    price = given.get("--price-per-hour", settings.price_per_hour)
    limits = {"price_per_hour": price}
    if {"--time-budget", "--budget-usd"} & set(given):
        limits["time_budget"] = spent + given["--time-budget"] if "--time-budget" in given else 0.0
        limits["budget_usd"] = spent / 3600 * price + given["--budget-usd"] if "--budget-usd" in given else 0.0
    return replace(settings, **limits), notes
