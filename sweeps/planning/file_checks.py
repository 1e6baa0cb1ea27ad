"""Checks of a plan with the actual files: one set of prepared data per method, the bases, and settings that these files
leave without effect; notes on rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.planning.question import Question
from trainables.common.errors import InputError
from trainables.images.sources.source import Source
from trainables.pretrained.base_model import EMPTY_PROMPT, find_base, load_scheduler_config, read_shape
from trainables.pretrained.prompts import pads_prompt
from trainables.settings import flatten, is_read, override, reason_unread
from trainables.settings.methods import METHODS
from trainables.settings.roles import SIMULATED, is_among

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


def check_effects_on_files(question: Question, source: Source) -> tuple[str, ...]:
    """Refuses settings, set or searched, that have no effect with these photographs or this base.

    Returns:
        Notes about settings that a space searches without effect beside others that have one.
    """

    def base_of(trial: TrialSettings) -> Path | None:
        """The folder of the trial's base; None for a method without one."""
        return find_base(trial.base.weights, trial.base.revision) if is_read("base.weights", (trial.method,)) else None

    def predicting(trial: TrialSettings) -> TrialSettings:
        """The trial with the prediction type that "base" stands for."""
        if trial.diffusion.prediction_type != "base" or not is_read("diffusion.prediction_type", (trial.method,)):
            return trial
        folder = base_of(trial)
        found = read_shape(folder).prediction_type if folder else ""
        return override(trial, {"diffusion.prediction_type": found or "v_prediction"})

    def ends_in_noise(trial: TrialSettings) -> bool:
        """Whether the last timestep of the trial's base is pure noise, whatever `diffusion.zero_terminal_snr` is."""
        folder = base_of(trial)
        return folder is not None and bool(load_scheduler_config(folder).get("rescale_betas_zero_snr"))

    trial, configurations = question.trial, question.outer_configurations()
    notes: list[str] = []
    named = {name: f"--set {name}={value}" for name, value in question.settings.set}
    named |= {name: f"--space {question.space.name}: searches {name}, which" for name in question.space.parameters}
    for name, text in named.items():
        readers = [one for one in configurations if is_read(name, (one.method,))]
        based = [one for one in readers if is_read("base.weights", (one.method,))]
        base = " or ".join(dict.fromkeys(f"base.weights={one.base.weights}" for one in based))
        mirrors = name == "pairs.variants" and trial.pairs.flips != "none"
        if is_among(name, SIMULATED) and source.paired and not mirrors:
            raise InputError(
                f"{text} has no effect: --data {trial.data.source} holds pairs; expected photographs without partners"
            )
        if name == "base.padded_prompt" and not any(map(pads_prompt, based)):
            raise InputError(
                f"{text} has no effect: no empty prompt is computed; expected a base with text_encoder/ and without "
                f"{EMPTY_PROMPT}, and no base.prompts with positive and empty"
            )
        if name == "conv_in.init":
            shapes = [read_shape(find_base(one.base.weights, one.base.revision)) for one in based]
            if shapes and all(shape.in_channels > shape.latent_channels for shape in shapes):
                raise InputError(f"{text} has no effect: {base} already takes both latents; expected another base")
        if name == "diffusion.zero_terminal_snr" and readers and all(map(ends_in_noise, readers)):
            noise = "has rescale_betas_zero_snr, so that its last timestep is pure noise already"
            why = f"{text} has no effect: the scheduler of {base} {noise}"
            if name not in question.space.parameters:
                raise InputError(f"{why}; expected another base")
            notes.append(why)
        if name.startswith("diffusion."):
            reasons = {reason_unread(name, predicting(one)) for one in readers}
            if reasons and "" not in reasons:
                raise InputError(
                    f"{text} has no effect with {' or '.join(sorted(reasons))}; diffusion.prediction_type=base stands "
                    "for the type that the base predicts"
                )
    return tuple(notes)
