"""Spaces from a file anywhere or from Python; a run keeps them as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import search_spaces
from search_spaces import Choice, Criterion, Float, Int, Point, SearchSpace, When
from sweeps.planning.own_spaces import SPACE_FILE, keep_space, kept_space, register_space
from trainables.common.errors import InputError

OWN = SearchSpace(
    name="own",
    question="Is it?",
    method="pix2pix",
    parameters={
        "method": Choice(("pix2pix", "pixel_diffusion")),
        "training.learning_rate": Float(1e-5, 1e-3, log=True),
        "diffusion.max_timestep": When({"method": ("pixel_diffusion",)}, Int(10, 1000)),
    },
    points=(Point("first", {"method": "pix2pix", "training.learning_rate": 1e-4}),),
    objective="val/psnr",
    controls=("bicubic",),
    fixed={"lora.targets": ("a", "b"), "perceptual.weight": 0.0, "training.compile": False},
    proposals=3,
    criteria=(Criterion("val/psnr", 20.0, 24.0),),
)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_spaces, "OWN", {})


def test_a_file_anywhere_is_a_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from search_spaces import *\nSPACE = " + repr(OWN))
    assert register_space(str(file)) == "own" and search_spaces.load("own") == OWN
    assert register_space("lora") == "lora" and register_space(OWN) == "own"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = 1\nb = (", ", line 2: '(' was never closed"),
        ("import math\n\nmath.nothing()", ", line 3: AttributeError: module 'math' has no attribute 'nothing'"),
        (
            "from search_spaces import *\ndef f():\n    return Float(2, 1)\nf()",
            ", line 3: ValueError: Float(2, 1, log=False): needs finite low < high, and low > 0 with log",
        ),
        ("import sys\nsys.exit('no licence')", ", line 2: SystemExit: no licence"),
        ("raise SystemExit", ", line 1: SystemExit"),
        ("a = 1\n\0", ": "),
        ("SPACE = 3", ": SPACE is a int; expected a SearchSpace"),
        ("a = 1", ": SPACE is nothing; expected a SearchSpace"),
    ],
)
def test_an_error_in_a_file_is_named_with_its_line(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(InputError) as found:
        register_space(str(file))
    assert str(found.value).startswith(f"--space {file}{message}")


def test_files_that_cannot_be_read_and_taken_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.py: cannot be read .*No such file"):
        register_space(str(tmp_path / "none.py"))
    for name, message in (("lora", "part of the package"), ("../up", "expected a name of letters")):
        with pytest.raises(InputError, match=message):
            register_space(SearchSpace(name, "?", "pix2pix", {}, (Point("one", {}),), "val/psnr"))


@pytest.mark.parametrize("space", [OWN, *map(search_spaces.load, search_spaces.names())], ids=lambda space: space.name)
def test_a_run_keeps_its_space_as_data(space: SearchSpace, tmp_path: Path) -> None:
    assert kept_space(tmp_path, space.name) is None  # a run of an earlier version
    keep_space(tmp_path, space)
    assert kept_space(tmp_path, space.name) == space


def test_a_damaged_space_is_refused(tmp_path: Path) -> None:
    keep_space(tmp_path, OWN)
    kept = json.loads((tmp_path / SPACE_FILE).read_text())
    other = {**kept, "name": "lora"}
    for damaged in ("{", json.dumps({**kept, "colour": 1}), json.dumps({**kept, "kind of": "Path"}), "[]"):
        (tmp_path / SPACE_FILE).write_text(damaged)
        with pytest.raises(InputError, match=r"space.json: damaged, or of another version"):
            kept_space(tmp_path, "own")
    (tmp_path / SPACE_FILE).write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"it is the space 'lora'; expected 'own'"):
        kept_space(tmp_path, "own")
