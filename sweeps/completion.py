"""Shell scripts that complete the flags. shtab generates them from the parsers."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping

import shtab

import search_spaces
from trainables.common.flags import Flags
from trainables.settings.methods import METHODS
from trainables.settings.presets import PRESETS

_FILES = ("PATH", "SOURCE", "FINISHED", "INPUT", "PNG")
_FOLDERS = ("DIR", "FOLDER", "OUTPUT", "ROOT", "RUN", "STORE")
_NAMES: dict[str, Callable[[], list[str]]] = {
    "space": search_spaces.names,
    "preset": lambda: list(PRESETS),
    "method": lambda: list(METHODS),
}
"""Destination of a flag -> suggested names. The flag also accepts other values."""


def completion_script(prog: str, parser: Flags, modules: Mapping[str, str], shell: str) -> str:
    """The completion script for a shell.

    Args:
        parser: the parser of the flags before a subcommand. modules: subcommand -> module with its `parser(prog)`.
    """
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, module in modules.items():
        commands.choices[name] = importlib.import_module(module).parser(f"{prog} {name}")
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # the attribute that shtab reads
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in _NAMES:
            action.choices = _NAMES[action.dest]()
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of a parser and of its subparsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
