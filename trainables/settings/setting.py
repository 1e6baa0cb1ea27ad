"""A setting and what is known about it, in one line: `draws: int = setting(4, within=(1, 1000), training_only=True)`.

What the meaning is stands in the docstring of the section, and only there: `meanings` reads it. Which settings have a
role is derived in `trainables.settings.roles`; nothing else lists names of settings.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")
_ROLES = "roles"
UNCHANGED, GIVEN = "unchanged", "given"


class Limits(NamedTuple):
    """Accepted numbers, both ends included unless they are open; of a tuple, each of its elements."""

    low: float
    high: float
    accepted: str = ""
    """How a message names them; empty for "low to high"."""
    open_low: bool = False
    open_high: bool = False

    def hold(self, number: float) -> bool:
        above = self.low < number if self.open_low else self.low <= number
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        return self.accepted or f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Roles:
    """What is known about a setting. A role of a section holds for all settings in it.

    Attributes:
        path: what is found at this path, where the value is one; "" for other settings.
        builtin: values that name something shipped with the package and are no paths.
        hub: the value may also be an id of the Hugging Face hub.
        flag: the flag of `run_sweep.py` that sets the same.
        shared: equal for all trials of a sweep, so it cannot be searched.
        training_only: has no effect where nothing trains.
        adversarial: has no effect without the method's adversarial term.
        simulated: has no effect on photographs that come in pairs.
        unless: (another setting, its value) with which this one has no effect; `GIVEN` for any but an empty value.
        methods: of the methods that read the section, those that read this setting; empty for all.
        restores: may be changed of a finished trial: it says where a frozen part is found, or how to sample.
        when_restoring: the value while a finished trial restores and nothing trains; `UNCHANGED` for the trained one.
        trained: how the value that restores compares with the one that a network was trained with.
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
    unless: tuple[str, object] | None = None
    methods: tuple[str, ...] = ()
    restores: Literal["", "frozen part", "sampling"] = ""
    when_restoring: Any = UNCHANGED
    trained: Literal["", "at most", "equal"] = ""
    within: tuple[float, float] | Limits | None = None


def setting(default: T, **roles: Any) -> T:
    """A field of a section with the roles that apply to it, see `Roles`."""
    # As `dataclasses.field` says of itself, it returns the type of the default.
    found: T = field(default=default, metadata={_ROLES: Roles(**roles)})
    return found


def section(kind: type[T], **roles: Any) -> T:
    """A field that is a section of its own, with the roles that apply to all of its settings."""
    found: T = field(default_factory=kind, metadata={_ROLES: Roles(**roles)})
    return found


def roles_of(kind: Any, prefix: str = "") -> dict[str, Roles]:
    """Dotted name -> roles of every setting of a dataclass; a section comes before its settings, as "pairs.print."."""
    found: dict[str, Roles] = {}
    for item in fields(kind):
        inner, own = _section_of(item), item.metadata.get(_ROLES, Roles())
        name = f"{prefix}{item.name}{'.' if inner else ''}"
        found[name] = own
        if inner:
            found |= roles_of(inner, name)
    return found


def _section_of(item: Any) -> Any:
    return item.default_factory if is_dataclass(item.default_factory) else None


def meanings(kind: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> meaning, unit and range of every setting, from the `Attributes:` of the sections' docstrings.
    A setting that its docstring does not explain is missing."""
    written = dict(_attributes(kind))
    found: dict[str, str] = {}
    for item in fields(kind):
        if inner := _section_of(item):
            found |= meanings(inner, f"{prefix}{item.name}.")
        elif text := written.get(item.name) or written.get(item.name.removesuffix("2")):  # "2": of the second round
            found[f"{prefix}{item.name}"] = text
    return found


def _attributes(kind: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of a docstring's attributes; several that share a text are listed as "l1, adversarial: ..."."""
    _, _, listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    listed = re.split(r"\n(?=\S)", listed)[0]  # up to the next section, which is not indented
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE):
        for name in names.split(", "):
            yield name, " ".join(text.split())
