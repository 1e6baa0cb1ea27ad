"""A setting with its limits and roles: `draws: int = setting(4, within=(1, 1000), training_only=True)`.

The docstring of its section explains the setting; `meanings` reads it. `trainables.settings.roles` derives the settings
with each role, so no other place lists names of settings.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")
_ROLES = "roles"
UNCHANGED, GIVEN = "unchanged", "given"


class Limits(NamedTuple):
    """Accepted numbers, with both ends unless they are open. For a tuple, the limits of each element."""

    low: float
    high: float
    accepted: str = ""
    """Text for messages; empty for "low to high"."""
    open_low: bool = False
    open_high: bool = False

    def hold(self, number: float) -> bool:
        above = self.low < number if self.open_low else self.low <= number
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        return self.accepted or f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Roles:
    """Facts about a setting. A role of a section applies to all settings in it.

    Attributes:
        path: kind of files at the path, if the value is a path; otherwise "".
        builtin: values that are not paths but names of files shipped with the package.
        hub: the value may also be an id of the Hugging Face hub.
        flag: the flag of `run_sweep.py` for this setting.
        shared: equal for all trials of a sweep, so it cannot be searched.
        training_only: has no effect without training.
        adversarial: has no effect without the method's adversarial term.
        simulated: has no effect on paired photographs.
        unless: values of other settings that disable this one, all of them together: {name: value}. A tuple of such
            mappings: each of them disables it. `GIVEN` stands for any value that is not empty.
        methods: the methods that read this setting, if not all readers of its section do; empty for all.
        restores: may be changed when a finished trial restores: the place of a frozen part, or a setting of sampling.
        when_restoring: value for restoring without training; `UNCHANGED` keeps the value of training.
        trained: required relation between the value for restoring and the value in training.
        within: accepted numbers, as (low, high) or `Limits`.
    """

    path: Literal["", "images", "weights"] = ""
    builtin: tuple[str, ...] = ()
    hub: bool = False
    flag: str = ""
    shared: bool = False
    training_only: bool = False
    adversarial: bool = False
    simulated: bool = False
    unless: Mapping[str, object] | tuple[Mapping[str, object], ...] = ()
    methods: tuple[str, ...] = ()
    restores: Literal["", "frozen part", "sampling"] = ""
    when_restoring: Any = UNCHANGED
    trained: Literal["", "at most", "equal"] = ""
    within: tuple[float, float] | Limits | None = None

    @property
    def disabling(self) -> tuple[Mapping[str, object], ...]:
        """`unless` as a tuple."""
        return (self.unless,) if isinstance(self.unless, Mapping) else self.unless


def setting(default: T, **roles: Any) -> T:
    """A field of a section with the roles that apply to it, see `Roles`."""
    # As for `dataclasses.field`, the declared return type is the type of the default.
    found: T = field(default=default, metadata={_ROLES: Roles(**roles)})
    return found


def section(kind: type[T], **roles: Any) -> T:
    """A field that is a section, with the roles that apply to all of its settings."""
    found: T = field(default_factory=kind, metadata={_ROLES: Roles(**roles)})
    return found


def roles_of(kind: Any) -> Mapping[str, Roles]:
    """Dotted name -> roles, for every setting of a dataclass. A section, "pairs.print.", comes before its settings."""
    return _roles_of(kind if isinstance(kind, type) else type(kind))


@functools.cache
def _roles_of(kind: type, prefix: str = "") -> Mapping[str, Roles]:
    found: dict[str, Roles] = {}
    for item in fields(kind):
        inner, own = _section_of(item), item.metadata.get(_ROLES, Roles())
        name = f"{prefix}{item.name}{'.' if inner else ''}"
        found[name] = own
        if inner:
            found |= _roles_of(inner, name)
    return found


def _section_of(item: Any) -> Any:
    return item.default_factory if is_dataclass(item.default_factory) else None


def meanings(kind: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> meaning, unit and range of every setting, from the `Attributes:` of the sections' docstrings. A
    setting without such a text is left out.
    """
    written = dict(_attributes(kind))
    found: dict[str, str] = {}
    for item in fields(kind):
        if inner := _section_of(item):
            found |= meanings(inner, f"{prefix}{item.name}.")
        elif text := written.get(item.name) or written.get(item.name.removesuffix("2")):  # "2": of the second round
            found[f"{prefix}{item.name}"] = text
    return found


def _attributes(kind: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of a docstring's attributes. Several names may share a text: "l1, adversarial: ..."."""
    _, _, listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    listed = re.split(r"\n(?=\S)", listed)[0]  # up to the next heading, which is not indented
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE):
        for name in names.split(", "):
            yield name, " ".join(text.split())
