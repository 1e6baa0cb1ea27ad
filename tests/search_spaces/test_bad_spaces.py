"""A file that does not define a question is named with its line; the others can still be listed and used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import search_spaces
from sweeps.listing import spaces_and_presets
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from trainables.common.errors import InputError

GOOD = (Path(search_spaces.__file__).parent / "max_timestep.py").read_text(encoding="utf-8")
SPACE = """
SPACE = SearchSpace(
    name="own",
    question="Is it?",
    method="pix2pix",
    parameters={"training.learning_rate": Float(1e-5, 1e-3)},
    points=(Point("a", {"training.learning_rate": 1e-4}),),
    objective="val/psnr",
)
"""
IMPORTS = "from search_spaces.space import Choice, Float, Int, Point, SearchSpace\n"
BAD = {
    "copied": (GOOD, r"own\.py, line \d+: defines a space named 'max_timestep'; expected 'own', as its file$"),
    "no SPACE": ((IMPORTS + SPACE).replace("SPACE =", "SPACES ="), r"own\.py: defines no SPACE; expected SPACE = "),
    "not a space": ("SPACE = {'name': 'own'}", r"own\.py: SPACE is of type dict; expected a SearchSpace"),
    "turned range": ((IMPORTS + SPACE).replace("1e-5, 1e-3", "1e-3, 1e-5"), r"own\.py, line 7: Float\(0\.001, 1e-05"),
    "no values": ((IMPORTS + SPACE).replace("Float(1e-5, 1e-3)", "Choice(())"), r"own\.py, line 7: Choice\(\(\)\)"),
    "point outside": ((IMPORTS + SPACE).replace("1e-4}", "1}"), r"own\.py, line 3: .*1 is not in 1e-05 to 0\.001"),
    "syntax": (IMPORTS + SPACE.rstrip(")\n"), r"own\.py, line 3: SyntaxError: '\(' was never closed"),
    "import": ("import a_package_of_nobody\n", r"own\.py, line 1: ModuleNotFoundError: No module named 'a_package"),
    "misspelt": ((IMPORTS + SPACE).replace("Float(", "Flot("), r"own\.py, line 7: NameError: name 'Flot' is not def"),
    "exit": (IMPORTS + "import sys\nsys.exit('no licence')\n", r"own\.py, line 3: SystemExit: no licence"),
    "silent exit": (IMPORTS + "raise SystemExit", r"own\.py, line 2: SystemExit$"),
    "cancelled": ("import asyncio\nraise asyncio.CancelledError", r"own\.py, line 2: CancelledError$"),
    "null byte": (IMPORTS + "\0", r"own\.py: SyntaxError: source code .* null bytes"),
    "argument": ((IMPORTS + SPACE).replace("objective=", "metric="), r"own\.py, line 3: TypeError: .* 'metric'"),
}


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """`added(text)`: a file own.py among the spaces."""

    def add(text: str) -> None:
        (tmp_path / "own.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(search_spaces, "__path__", [str(tmp_path), *search_spaces.__path__])
        importlib.invalidate_caches()

    yield add
    sys.modules.pop("search_spaces.own", None)


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_named_with_its_line(case: str, added: Callable[[str], None]) -> None:
    text, message = BAD[case]
    added(text)
    with pytest.raises(InputError, match=f"^--space own: search_spaces/{message}") as caught:
        resolve(SweepSettings("own"))
    assert "\n" not in str(caught.value)
    listed = " ".join(spaces_and_presets().split())
    assert "own cannot be used: search_spaces/own.py" in listed
    assert search_spaces.load("max_timestep").question in listed


def test_folder_is_no_question(added: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").touch()
    added(IMPORTS + SPACE)
    expected = "search_spaces/helpers: not a Python file; expected search_spaces/helpers.py with a SPACE"
    with pytest.raises(InputError, match=f"^--space helpers: {expected}$"):
        resolve(SweepSettings("helpers"))
    assert f"helpers cannot be used: {expected}" in " ".join(spaces_and_presets().split())
    assert resolve(SweepSettings("own")).space.question == "Is it?"


def test_good_file_is_listed(added: Callable[[str], None]) -> None:
    added(IMPORTS + SPACE)
    assert resolve(SweepSettings("own")).space.question == "Is it?"
