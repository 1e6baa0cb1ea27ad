"""Settings that a trial has and never reads, since another of its settings leaves them nothing to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainables.common.errors import InputError
from trainables.settings.methods import METHODS
from trainables.settings.trial import TrialSettings

_SIMULATORS = {"super_resolution": "pairs.degradation.", "print_to_camera": "pairs.print."}
_LOSSES = (
    *("pairs.train_pairs", "pairs.colour_swap_prob", "perceptual.", "discriminator.", "first_stage.draws", "sinsr."),
    *("diffusion.noise_weight", "diffusion.reconstruction_weight", "lora.dropout"),
    *("cfw.adversarial", "ccsr.adversarial", "pix2pix.l1", "pix2pix.adversarial", "pix2pix.gan_mode"),
)
_ONLY_TRAINING = (
    *("batch_size", "accumulate", "learning_rate", "rate_factor", "beta1", "beta2", "warmup_steps", "schedule"),
    *("weight_decay", "clip_gradient", "ema_decay", "gradient_checkpointing", "reports", "log_every"),
)
_NOTHING_TO_CHECKPOINT = ("pix2pix", "stablesr_cfw")


def unread(trial: TrialSettings) -> dict[str, str]:
    """What has no effect on this trial: a setting's name, or what several begin with -> what makes it so."""
    reads, method = METHODS[trial.method].sections, f"method={trial.method}"
    why = dict.fromkeys(_SIMULATORS.values(), f"pairs.simulator={trial.pairs.simulator}")
    del why[_SIMULATORS[trial.pairs.simulator]]
    if trial.training.max_steps == 0:
        why |= dict.fromkeys((*_LOSSES, *(f"training.{name}" for name in _ONLY_TRAINING)), "training.max_steps=0")
    elif trial.method in _NOTHING_TO_CHECKPOINT:
        why["training.gradient_checkpointing"] = method
    if trial.method == "pix2pix" and trial.pix2pix.downs == 5:
        why["pix2pix.dropout"] = "pix2pix.downs=5"
    if "lora" in reads and not trial.lora.rank:
        why |= {f"lora.{name}": "lora.rank=0" for name in ("scale", "targets", "dropout", "weights")}
    if "controlnet" in reads and trial.controlnet.weights:
        why["controlnet.embedding_channels"] = f"controlnet.weights={trial.controlnet.weights}"
    if "perceptual" in reads and not trial.perceptual.weight:
        why |= {f"perceptual.{name}": "perceptual.weight=0" for name in ("every", "network")}
    for section, others in (("cfw", ()), ("ccsr", ()), ("pix2pix", ("pix2pix.gan_mode",))):
        if section != trial.method.removeprefix("stablesr_"):
            continue
        start, steps = getattr(getattr(trial, section), "adversarial_start", 0), trial.training.max_steps
        unused = (f"{section}.adversarial_start", "discriminator.", *others)
        if 0 < steps <= start:
            late = f"{section}.adversarial_start={start} and training.max_steps={steps}"
            why |= dict.fromkeys((f"{section}.adversarial", *unused), late)
        elif not getattr(trial, section).adversarial:
            why |= dict.fromkeys(unused, f"{section}.adversarial=0")
    if "diffusion" in reads:
        if trial.diffusion.prediction_type == "sample":
            why["diffusion.noise_weight"] = "diffusion.prediction_type=sample"
        uniform = trial.diffusion.objective == "uniform"
        if not uniform:
            why["diffusion.spacing"] = "diffusion.objective=ccsr"
        of_the_decoder = {f"ccsr.{name}": method for name in ("steps", "t_min", "adversarial")}
        why |= {"ccsr.": "diffusion.objective=uniform"} if uniform else of_the_decoder
    return why


def is_read(name: str, methods: Sequence[str]) -> bool:
    """Whether one of these methods reads the section of a setting; what is in none is for all, or is misspelt."""
    section, dot, _ = name.partition(".")
    read = (section in METHODS[method].sections for method in methods)
    return not dot or section not in TrialSettings.__dataclass_fields__ or any(read)


def check_sections(names: Iterable[str], methods: Sequence[str]) -> None:
    """Refuses what would be set without any effect.

    Args:
        names: of the settings that `--set` gives.

    Raises:
        InputError: one is in a section that none of the methods reads.
    """
    for name in names:
        if not is_read(name, methods):
            section, read = name.partition(".")[0], frozenset().union(*(METHODS[one].sections for one in methods))
            raise InputError(
                f"--set {name}: no part of {section} is read by {' or '.join(methods)}; expected one of "
                f"{', '.join(sorted(read))}"
            )


def reason_unread(name: str, trial: TrialSettings) -> str:
    """The setting for which `name` has no effect on this trial; empty if it has one."""
    return next((reason for prefix, reason in unread(trial).items() if name.startswith(prefix)), "")
