"""Settings that a trial has and never reads, since another of its settings leaves them nothing to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainables.common.errors import InputError
from trainables.settings.methods import METHODS
from trainables.settings.override import flatten
from trainables.settings.roles import ADVERSARIAL, ROLES, TRAINING_ONLY, idle, is_among
from trainables.settings.trial import TrialSettings


def unread(trial: TrialSettings) -> dict[str, str]:
    """What has no effect on this trial: a setting's name, or a section's with a dot -> what makes it so. Of several
    that apply to a setting the first counts."""
    method, values, steps = METHODS[trial.method], flatten(trial), trial.training.max_steps
    why = {} if steps else dict.fromkeys(TRAINING_ONLY, "training.max_steps=0")
    without = {name: reason for name, reason in idle(values).items() if is_read(reason, (trial.method,))}
    for name, roles in ROLES.items():
        others = roles.methods and trial.method not in roles.methods
        if others and is_read(name, (trial.method,)) and not is_among(name, without):
            without[name] = f"method={trial.method}"
    why |= without
    if "discriminator" in method.reads:
        why |= _idle_adversary(trial.method, values)
    if not method.gradient_checkpointing:
        why.setdefault("training.gradient_checkpointing", f"method={trial.method}")
    return why


def _idle_adversary(method: str, values: Mapping[str, Any]) -> dict[str, str]:
    """What is without effect where the method's adversarial term has no weight, or begins after the last step."""
    names, steps = [name for name in ADVERSARIAL if is_read(name, (method,))], values["training.max_steps"]
    why: dict[str, str] = {}
    for weight in (f"{section}.adversarial" for section in METHODS[method].reads):
        begins = f"{weight}_start"
        if 0 < steps <= values.get(begins, 0):
            why |= dict.fromkeys((weight, *names), f"{begins}={values[begins]} and training.max_steps={steps}")
        elif values.get(weight) == 0:
            why |= dict.fromkeys(names, f"{weight}=0")
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
    return next((reason for listed, reason in unread(trial).items() if is_among(name, (listed,))), "")
