"""The questions, one file each: a module that defines `SPACE`. To add a question, add one file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import traceback
from pathlib import Path

from search_spaces.space import (
    SAMPLERS,
    Choice,
    Criterion,
    Distribution,
    Float,
    Int,
    Point,
    SearchSpace,
    SpaceError,
    Value,
    When,
)

__all__ = [
    "SAMPLERS",
    "Choice",
    "Criterion",
    "Distribution",
    "Float",
    "Int",
    "Point",
    "SearchSpace",
    "SpaceError",
    "Value",
    "When",
    "load",
    "names",
]


OWN: dict[str, SearchSpace] = {}
"""Name -> a space from outside of this package, which `load` knows too."""


def names() -> list[str]:
    """The names of all spaces, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "space")


def load(name: str) -> SearchSpace:
    """The space with this name, of this package or of `OWN`.

    Raises:
        KeyError: there is none; the message lists the existing names.
        SpaceError: its file does not define a space of this name.
    """
    if name in OWN:
        return OWN[name]
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1)
        meant = f", nearest: {nearest[0]}" if nearest else ""
        raise KeyError(f"there is no space {name!r}{meant}; the spaces are: {', '.join(names())}")
    file = next((path for folder in __path__ if (path := Path(folder) / f"{name}.py").is_file()), None)
    if file is None:
        raise SpaceError(f"search_spaces/{name}: not a Python file; expected search_spaces/{name}.py with a SPACE")
    where = f"search_spaces/{file.name}"
    try:
        space = getattr(importlib.import_module(f"search_spaces.{name}"), "SPACE", None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a module can raise, also SystemExit
        raise SpaceError(f"{where}{line_of(error, file)}: {_text_of(error)}") from None
    if space is None:
        raise SpaceError(f"{where}: defines no SPACE; expected SPACE = SearchSpace(name={name!r}, ...)")
    if not isinstance(space, SearchSpace):
        raise SpaceError(f"{where}: SPACE is of type {type(space).__name__}; expected a SearchSpace")
    if space.name != name:
        written = f'"{space.name}"', f"'{space.name}'"
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        line = next((f", line {number}" for number, text in lines if any(each in text for each in written)), "")
        raise SpaceError(f"{where}{line}: defines a space named {space.name!r}; expected {name!r}, as its file")
    return space


def line_of(error: BaseException, file: Path) -> str:
    """The last line of `file` that an error comes from, as ", line 12"."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f", line {error.lineno}" if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


def _text_of(error: BaseException) -> str:
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}".removesuffix(": ")
