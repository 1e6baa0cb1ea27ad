"""Changes settings by dotted name and checks every value. Flags, spaces and Optuna change settings only through it."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

from trainables.common.errors import InputError

T = typing.TypeVar("T")


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value for every leaf of a settings dataclass."""
    return dict(_leaves(settings, prefix))


def _leaves(settings: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def section_defaults(kind: Any) -> dict[str, Any]:
    """Dotted name -> default of every setting in a section of a settings dataclass. Sections need not fit together."""
    sections = {item.name: item.default_factory for item in dataclasses.fields(kind)}
    made = {name: section() for name, section in sections.items() if section is not dataclasses.MISSING}
    return {name: value for section, values in made.items() for name, value in _leaves(values, f"{section}.")}


def override(settings: T, changes: Mapping[str, Any]) -> T:
    """`settings` with new values for dotted names. Strings are converted to the field's type.

    All changes are applied together, so that fields that must agree can change in one call.

    Raises:
        InputError: unknown names, values of the wrong type, or values that the settings refuse.
    """
    if unknown := [name for name in changes if not _has(settings, name)]:
        known = flatten(settings)
        raise InputError(
            "; ".join(f"{name}: no such setting; nearest: {', '.join(_nearest(name, known))}" for name in unknown)
        )
    return typing.cast("T", _replace(settings, changes, ""))


def _has(settings: Any, name: str) -> bool:
    """Whether a dotted name is one of `flatten(settings)`."""
    for part in name.split("."):
        if not dataclasses.is_dataclass(settings) or part not in settings.__dataclass_fields__:
            return False
        settings = getattr(settings, part)
    return not dataclasses.is_dataclass(settings)


def _replace(settings: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    """Sections without a change stay the same objects: to make and check all of them again takes ten times as long."""
    hints = _type_hints(settings.__class__)
    values, errors = {}, []
    for item in dataclasses.fields(settings):
        name, value = f"{prefix}{item.name}", getattr(settings, item.name)
        try:
            if dataclasses.is_dataclass(value):
                if any(changed.startswith(f"{name}.") for changed in changes):
                    values[item.name] = _replace(value, changes, f"{name}.")
            elif name in changes:
                values[item.name] = _convert(name, changes[name], hints[item.name])
        except InputError as error:  # all that is wrong is told at once
            errors.append(str(error))
    if errors:
        raise InputError("; ".join(errors))
    return dataclasses.replace(settings, **values)


@functools.cache  # evaluating them takes longer than the rest of `override`
def _type_hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`. Strings are parsed, NumPy scalars become Python numbers, lossy conversions are refused."""
    origin = typing.get_origin(kind)
    try:
        if origin is Literal:
            for option in typing.get_args(kind):
                if value == option:
                    return option
            raise InputError(f"{name}={value}: expected one of {', '.join(map(str, typing.get_args(kind)))}")
        if origin is tuple:
            parts = _split(value) if isinstance(value, str) else value
            elements = typing.get_args(kind)
            if len(elements) == 2 and elements[1] is Ellipsis:
                elements = (elements[0],) * len(parts)
            if len(parts) != len(elements):
                raise InputError(f"{name}={value}: expected {len(elements)} values, separated by commas")
            return tuple(_convert(name, part, element) for part, element in zip(parts, elements, strict=True))
        if origin in (types.UnionType, typing.Union):
            options = [option for option in typing.get_args(kind) if option is not type(None)]
            return (
                None
                if value is None or str(value).lower() in ("none", "null", "")
                else _convert(name, value, options[0])
            )
        if kind is bool:
            return _as_bool(value)
        if kind is int:
            return _whole(value)
        if kind is float:
            return _finite(value)
        if kind is str and isinstance(value, str):
            return str(value)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
    expected = f"{_PLURALS[typing.get_args(kind)[0]]} separated by commas" if origin is tuple else _KINDS[kind]
    raise InputError(f"{name}={value}: expected {expected}")


def _split(text: str) -> list[str]:
    """The elements of a tuple, from "8, 16" or from Python's "(8,)" and "('to_q', 'to_k')"."""
    inner = text.strip("()[] ").removesuffix(",")
    return [part.strip("'\" ") for part in inner.split(",")] if inner else []


_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


def _as_bool(value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ValueError(value)


def _whole(value: Any) -> int:
    if isinstance(value, str | Integral) and not isinstance(value, bool):
        return int(value)
    number = _finite(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _finite(value: Any) -> float:
    # isinstance(value, Real) is False for NumPy's booleans and True for Python's.
    if not isinstance(value, str | Real) or isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _nearest(name: str, known: Mapping[str, Any]) -> list[str]:
    """Settings that may be meant: of this name in another section, with these initials ("lr"), spelt alike."""
    import difflib

    given = name.rpartition(".")[2]
    lasts = {one: one.rpartition(".")[2] for one in known}
    same = [one for one, last in lasts.items() if last == given]
    initials = [one for one, last in lasts.items() if "".join(word[:1] for word in last.split("_")) == given]
    alike = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    close = list(dict.fromkeys([*same, *initials, *alike]))[:3]
    return close or sorted({f"{head}.*" if dot else head for head, dot, _ in (n.partition(".") for n in known)})


def assignments(texts: Sequence[str], example: str) -> list[tuple[str, str]]:
    """(name, value) of every `--set KEY=VALUE`.

    Args:
        example: a valid assignment, for the message.

    Raises:
        InputError: a text that is not of that form.
    """
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--set {text}: expected KEY=VALUE, such as {example}")
        pairs.append((name, value))
    return pairs
