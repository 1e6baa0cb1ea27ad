"""Settings without effect on a trial, because another of its settings disables them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainables.common.errors import InputError
from trainables.settings.methods import METHODS
from trainables.settings.override import flatten
from trainables.settings.roles import ADVERSARIAL, ROLES, TRAINING_ONLY, idle, is_among
from trainables.settings.trial import TrialSettings


def unread(trial: TrialSettings) -> dict[str, str]:
    """The settings and sections ("pairs.print.") without effect on this trial -> the reason. If several reasons apply
    to a setting, the first one counts.
    """
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
    """The settings without effect because the adversarial term has weight 0 or starts after the last step."""
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
    """Whether one of these methods reads the section of a setting; True for a name without a known section."""
    section, dot, _ = name.partition(".")
    read = (section in METHODS[method].sections for method in methods)
    return not dot or section not in TrialSettings.__dataclass_fields__ or any(read)


def check_sections(names: Iterable[str], methods: Sequence[str]) -> None:
    """Refuses settings that none of the methods reads.

    Args:
        names: the settings given by `--set`.

    Raises:
        InputError: a setting in a section that none of the methods reads.
    """
    for name in names:
        if not is_read(name, methods):
            section, read = name.partition(".")[0], frozenset().union(*(METHODS[one].sections for one in methods))
            raise InputError(
                f"--set {name}: {' or '.join(methods)} reads no settings of {section}; expected a setting of "
                f"{', '.join(sorted(read))}"
            )


def reason_unread(name: str, trial: TrialSettings) -> str:
    """Why a setting has no effect on this trial, as "other.setting=value"; empty if it has an effect."""
    return next((reason for listed, reason in unread(trial).items() if is_among(name, (listed,))), "")
