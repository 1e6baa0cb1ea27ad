"""Runs the examples in docstrings and compares their output."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FILES = [file for top in ("search_spaces", "sweeps", "trainables") for file in (ROOT / top).rglob("*.py")]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in FILES
    if re.search(r"^\s*>>> ", file.read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str, tmp_path: Path) -> None:
    """`folder` in an example is an empty folder."""
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for found in doctest.DocTestFinder().find(module, name, extraglobs={"folder": tmp_path}):
        runner.run(found)
    assert runner.summarize(verbose=False).failed == 0
