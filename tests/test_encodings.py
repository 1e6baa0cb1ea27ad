"""Text files are read and written in UTF-8, whatever the locale: a cluster's nodes may have another one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGES = ("run_sweep.py", "cluster", "search_spaces", "sweeps", "trainables", "tests/faults")


def _modules() -> list[Path]:
    paths = [ROOT / name for name in PACKAGES]
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))


def _without_encoding(source: str) -> list[int]:
    """The lines of calls that open a file, or read a process, as text in the locale's encoding."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        mode = next((word.value for word in call.keywords if word.arg == "mode"), None)
        # `open(path, mode)`, but `path.open(mode)`.
        place = 0 if isinstance(call.func, ast.Attribute) else 1
        mode = mode or (call.args[place] if name in ("open", "fdopen") and len(call.args) > place else None)
        text = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value
        text |= mode is None and isinstance(call.func, ast.Name)
        of_process = any(word.arg == "text" for word in call.keywords) and name in ("run", "Popen", "check_output")
        always = name in ("read_text", "write_text", "FileHandler")
        if always or of_process or (name in ("open", "fdopen") and text):
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("p.write_text(x)", True),
        ("p.read_text(encoding='utf-8')", False),
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("open(p, 'w')", True),
        ("p.open('a')", True),
        ("logging.FileHandler(p)", True),
        ("subprocess.run(a, text=True)", True),
        ("subprocess.run(a, encoding='utf-8')", False),
        ("place.open()", False),
        ("os.open(p, os.O_RDWR)", False),
    ],
)
def test_finder(code: str, found: bool) -> None:
    assert bool(_without_encoding(code)) == found


def test_text_files_have_an_encoding() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{line}"
        for file in _modules()
        for line in _without_encoding(file.read_text(encoding="utf-8"))
    }
    assert not found, "give encoding='utf-8'"
