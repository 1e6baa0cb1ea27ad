"""Checks of a plan with the actual files: one set of prepared data per method, and the bases; notes on rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sweeps.planning.question import Question
from trainables.common.errors import InputError
from trainables.settings import flatten, override
from trainables.settings.methods import METHODS

if TYPE_CHECKING:
    from trainables.data.stages.stage import Stage
    from trainables.settings import TrialSettings


def check_stores(
    question: Question,
    configuration: TrialSettings,
    made: Sequence[Stage],
    stages: Callable[[TrialSettings], Sequence[Stage]],
) -> None:
    """Refuses a configuration that reads other prepared data than the first one of its method: a sweep makes it once.

    Args:
        made: the stages of its method.
        stages: trial -> the stages that it reads.
    """
    expected = {stage.folder.name for stage in made}

    def others(trial: TrialSettings) -> list[str]:
        return [stage.name for stage in stages(trial) if stage.folder.name not in expected]

    if found := others(configuration):
        (same,) = (trial for trial in question.every_method if trial.method == configuration.method)
        values, searched = flatten(configuration), [name for name in question.space.parameters if name != "method"]
        deciding = [name for name in searched if others(override(same, {name: values[name]}))]
        raise InputError(
            f"--space {question.space.name}: searches {', '.join(deciding or searched)}, but prepared data "
            f"({found[-1]}) depends on it; run one sweep per value"
        )


def find_bases(trials: Sequence[TrialSettings], download: bool) -> None:
    """Finds the bases, and downloads those missing from the hub's cache if `download` is true."""
    from trainables.pretrained.base_model import find_base

    wanted: dict[tuple[str, str], str] = {}
    for trial in trials:
        sections = METHODS[trial.method].sections
        if "base" in sections:
            wanted[trial.base.weights, trial.base.revision] = "base.weights"
        if "controlnet" in sections and trial.controlnet.weights:
            wanted[trial.controlnet.weights, trial.controlnet.revision] = "controlnet.weights"
    for (weights, revision), setting in wanted.items():
        find_base(weights, revision, download, setting)


def rate_notes(trials: Sequence[TrialSettings]) -> tuple[str, ...]:
    """A note if a trial's learning rate is above the limit of PyTorch's Adafactor, see `make_optimiser`."""
    capped = [
        trial.training
        for trial in trials
        if trial.training.optimiser == "adafactor"
        and trial.training.peak_rate > 1 / math.sqrt(max(1, trial.training.max_steps * trial.training.updates))
    ]
    if not capped:
        return ()
    highest = max(training.peak_rate for training in capped)
    first = math.floor((1 / highest) ** 2) + 1
    return (
        f"training.optimiser=adafactor steps with a rate of at most 1/sqrt(update): a learning rate of {highest:g} "
        f"is not reached from update {first:,} on",
    )
