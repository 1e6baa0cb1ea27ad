"""Help and listings fit into the terminal. Long lines of a user's terminal break in the middle of words."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

import search_spaces
from sweeps import console
from sweeps.completion import _actions
from sweeps.listing import spaces_and_presets
from trainables.common.flags import hanging
from trainables.settings.presets import PRESETS


def parsers() -> Iterator[Any]:
    """The parser of every command and subcommand, under both names."""
    yield console.parser()
    for name, command in console.COMMANDS.items():
        for arguments in ([], [f"restoration-sweeps {name}"]):
            parser = importlib.import_module(command.module).parser(*arguments)
            yield parser
            for action in _actions(parser):
                if action.dest == "command":
                    yield from action.choices.values()


@pytest.mark.parametrize("columns", [72, 80, 132])
def test_help_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = {parser.prog: parser.format_help() for parser in parsers()}
    assert len(shown) >= 13
    for prog, text in shown.items():
        assert [line for line in text.splitlines() if len(line) > columns] == [], prog


def test_examples_of_help_stay_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell reads a broken line as the whole one."""
    monkeypatch.setenv("COLUMNS", "60")
    broken = 0
    for parser in parsers():
        lines = parser.format_help().replace("\\\n", " ").splitlines()
        wanted = [line.split() for line in (parser.epilog or "").splitlines() if line.startswith(" ")]
        assert [shlex.split(line) for line in lines if line.split() in wanted] == wanted
        broken += parser.format_help().count("\\\n")
    assert broken > 10


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_list_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = spaces_and_presets()
    assert max(map(len, text.splitlines())) <= columns
    told = " ".join(text.split())
    for name in search_spaces.names():
        assert f"{name} {search_spaces.load(name).question}" in told
    assert all(f"{name} {each.purpose}" in told for name, each in PRESETS.items())
    starts = {len(line) - len(line.lstrip()) for line in text.splitlines()}
    assert len(starts) == (2 if columns == 200 else 3), "names, and the lines below a question"


def test_word_longer_than_the_line_stays_whole() -> None:
    assert hanging("see https://example.org/a-long-address now", "", "  ", 12) == [
        "see",
        "  https://example.org/a-long-address",
        "  now",
    ]
