"""The settings with each role, derived from the roles at their fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trainables.settings.setting import GIVEN, UNCHANGED, roles_of
from trainables.settings.trial import TrialSettings

ROLES = roles_of(TrialSettings)
"""Dotted name -> roles, for every setting and every section ("pairs.print.")."""


def names(role: str) -> tuple[str, ...]:
    """The settings and sections with a role, in the order of their fields."""
    return tuple(name for name, roles in ROLES.items() if getattr(roles, role))


def is_among(name: str, listed: Collection[str]) -> bool:
    """Whether a setting is listed, by its own name or by the name of its section."""
    return any(name == one or (one.endswith(".") and name.startswith(one)) for one in listed)


SHARED = names("shared")
TRAINING_ONLY = names("training_only")
ADVERSARIAL = names("adversarial")
SIMULATED = names("simulated")
PATHS = names("path")
WEIGHT_PATHS = tuple(name for name in PATHS if ROLES[name].path == "weights")
FLAGS = {name: ROLES[name].flag for name in names("flag")}
RESTORES = tuple(sorted(names("restores"), key=lambda name: ("frozen part", "sampling").index(ROLES[name].restores)))
WHEN_RESTORING = {name: roles.when_restoring for name, roles in ROLES.items() if roles.when_restoring != UNCHANGED}


def idle(values: Mapping[str, Any]) -> dict[str, str]:
    """The settings and sections without effect -> the setting that disables them, with its value.

    Args:
        values: dotted name -> value, of all settings.
    """
    found: dict[str, str] = {}
    for name, roles in ROLES.items():
        for others in roles.disabling:
            met = [_met(other, value, values[other]) for other, value in others.items()]
            if all(met):
                found.setdefault(name, " and ".join(met))
    return found


def _met(name: str, disabling: object, value: object) -> str:
    """A condition of `Roles.unless` in words; empty if `value` does not meet it."""
    if disabling == GIVEN:
        return f"{name}={value}" if value else ""
    return f"{name}={disabling}" if value == disabling else ""


def trained_for(values: Mapping[str, Any], comparison: str) -> list[str]:
    """The settings that limit how a trained network may restore, see `Roles.trained`.

    Args:
        values: dotted name -> value in training, of all settings. comparison: "at most" or "equal".
    """
    without_effect = idle(values)
    compared = [name for name in names("trained") if ROLES[name].trained == comparison]
    return [name for name in compared if not is_among(name, without_effect)]
