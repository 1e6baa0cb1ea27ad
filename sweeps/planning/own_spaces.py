"""Spaces from outside of `search_spaces`: from a file anywhere, from Python, and as data in the folder of a run.

A run keeps its space as data, not as code: it goes on with the same points and ranges in another version of the
project, and a run from somebody else can be resumed without executing what is in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import search_spaces
from search_spaces import Choice, Criterion, Float, Int, Point, SearchSpace, When
from trainables.common.errors import InputError, one_line
from trainables.common.paths import path_of, write_durably

SPACE_FILE = "space.json"
_KINDS = {kind.__name__: kind for kind in (SearchSpace, Float, Int, Choice, When, Point, Criterion)}
_KIND = "kind of"
_NAME = re.compile(r"\w[\w-]*")  # names the folder of its runs


def is_path(text: str) -> bool:
    """Whether the value of `--space` is the path of a file rather than the name of a space."""
    return text.endswith(".py") or os.sep in text


def register_space(space: SearchSpace | str) -> str:
    """Makes a space known to `search_spaces.load`; returns its name.

    Args:
        space: a space, the path of a file that defines `SPACE`, or the name of a known space.

    Raises:
        InputError: a file that cannot be read or has an error, which is named with its line; or a name that is taken.
    """
    if isinstance(space, str):
        if not is_path(space):
            return space
        space = read_space_file(path_of("--space", space))
    if not _NAME.fullmatch(space.name):
        raise InputError(
            f"space {space.name!r}: expected a name of letters, digits, _ and -; it names the folder of runs"
        )
    if space.name in search_spaces.names():
        raise InputError(f"space {space.name}: a space of this name is part of the package; choose another name")
    search_spaces.OWN[space.name] = space
    return space.name


def read_space_file(path: Path) -> SearchSpace:
    """The `SPACE` of a Python file.

    Raises:
        InputError: see `register_space`.
    """
    name = f"--space {path}"
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"{name}: cannot be read ({one_line(error)}); expected a Python file that defines SPACE"
        ) from None
    defined: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), defined)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the user's code, also SystemExit
        kind, text = type(error).__name__, one_line(error.msg if isinstance(error, SyntaxError) else error)
        told = text if isinstance(error, SyntaxError) or text == kind else f"{kind}: {text}"
        raise InputError(f"{name}{search_spaces.line_of(error, path)}: {told}") from None
    space = defined.get("SPACE")
    if not isinstance(space, SearchSpace):
        found = "nothing" if space is None else f"a {type(space).__name__}"
        raise InputError(f"{name}: SPACE is {found}; expected a SearchSpace, see docs/architecture.md")
    return space


def keep_space(run: Path, space: SearchSpace) -> None:
    """Writes a space into the folder of its run: its file may be another one when the run goes on."""
    write_durably(run / SPACE_FILE, json.dumps(_encoded(space), indent=1))


def kept_space(run: Path, name: str) -> SearchSpace | None:
    """The space with which a run was started; None if it keeps none, as those of earlier versions with a space of the
    package.

    Args:
        name: of the space.

    Raises:
        InputError: it is damaged.
    """
    path = run / SPACE_FILE
    if not path.exists():
        return None
    try:
        space = _decoded(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(space, SearchSpace):
            raise ValueError("it is no space")
        if space.name != name:
            raise ValueError(f"it is the space {space.name!r}; expected {name!r}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged, or of another version ({one_line(error)}); put back a copy of this file, or start a new "
            "run of the space"
        ) from None
    return space


def _encoded(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _encoded(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_KIND: type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {name: _encoded(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_encoded(each) for each in value]
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(each) for each in value)
    if not isinstance(value, dict):
        return value
    kind = value.pop(_KIND, None)
    fields = {name: _decoded(each) for name, each in value.items()}
    return fields if kind is None else _KINDS[kind](**fields)
