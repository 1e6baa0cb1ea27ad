"""What `--list` and `--list-settings` print."""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal

import search_spaces
from trainables.common.errors import InputError
from trainables.common.flags import hanging
from trainables.settings import TrialSettings, degradation, flatten, is_read, pairs, print_to_camera
from trainables.settings.methods import METHODS
from trainables.settings.presets import PRESETS, preset
from trainables.settings.roles import ROLES
from trainables.settings.setting import meanings

_WIDTH = 80
_OWN_TEXTS = {
    "pairs": pairs.accepted_text,
    "pairs.degradation": degradation.accepted_text,
    "pairs.print": print_to_camera.accepted_text,
}
"""Sections with checks of their own."""


def spaces_and_presets() -> str:
    """The spaces with their questions, and the presets with their purposes, as wide as the terminal."""
    parts = {
        "spaces (--space):": {name: _question_of(name) for name in search_spaces.names()},
        "presets (--preset):": {name: each.purpose for name, each in PRESETS.items()},
    }
    longest = max(len(name) for part in parts.values() for name in part)
    columns = shutil.get_terminal_size().columns
    lines = []
    for title, part in parts.items():
        lines.append(title)
        for name, text in part.items():
            lines += hanging(text, f"  {name:{longest}}  ", " " * (longest + 4), columns)
    return "\n".join(lines)


def _question_of(name: str) -> str:
    """A space's question; for a file that does not define one, what is wrong with it."""
    try:
        return search_spaces.load(name).question
    except search_spaces.SpaceError as error:
        return f"cannot be used: {error}"


def settings_text(method: str, preset_name: str) -> str:
    """The settings that `--set` takes: name, value in the preset, accepted values, meaning.

    Args:
        method: lists the sections that it reads; empty for those of all methods.

    Raises:
        InputError: no such method or preset.
    """
    if method and method not in METHODS:
        raise InputError(f"--list-settings {method}: no such method; expected one of {', '.join(METHODS)}")
    chosen = preset(preset_name)
    values = flatten(chosen.trial) | dict(chosen.methods.get(method, {})) | ({"method": method} if method else {})
    told, kinds = meanings(TrialSettings), dict(_kinds(TrialSettings))
    lines = []
    for name, value in values.items():
        if method and not is_read(name, (method,)):
            continue
        accepted = _accepted(name, kinds[name])
        lines.append(f"{name} = {_text(value)}{f'   ({accepted})' if accepted else ''}")
        lines += textwrap.wrap(told.get(name, ""), _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _kinds(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, annotated type) of every setting."""
    for name, kind in typing.get_type_hints(section).items():
        if hasattr(kind, "__dataclass_fields__"):
            yield from _kinds(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def _accepted(name: str, kind: Any) -> str:
    """The accepted values, where they are limited."""
    section, _, field = name.rpartition(".")
    if section in _OWN_TEXTS and (text := _OWN_TEXTS[section](field)):
        return text.replace("(low, high)", "low,high")  # as `--set` takes it
    within = ROLES[name].within
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if within is None:
        return "true or false" if kind is bool else ""
    return f"{within[0]} to {within[1]}" if type(within) is tuple else str(within)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
