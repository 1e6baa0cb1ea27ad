"""The order of the packages: which module may import which, and which may import Ray.

A module imports from lower levels or from its own room. Imports inside functions, which save start-up time, follow the
same rules.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom. Rooms of one level do not import each other.
LEVELS = (
    ("search_spaces", "trainables.common"),
    ("trainables.metrics", "trainables.diffusion"),
    ("trainables.networks", "trainables.settings"),
    ("trainables.images", "trainables.pretrained"),
    ("trainables.methods",),
    ("trainables.data",),
    ("trainables.training", "trainables.restorer"),
    ("trainables.restore", "trainables.export", "trainables.prompts"),
    ("trainables.assets", "trainables.gpu_check"),
    ("sweeps.formatting", "sweeps.trial_config"),
    ("sweeps.planning",),
    ("sweeps.recording",),
    ("sweeps.running", "sweeps.answering"),
    ("sweeps.sweep",),
    ("sweeps.listing", "sweeps.compare", "sweeps.api"),
    ("sweeps.command_line", "sweeps.completion"),
    ("sweeps.console",),
    ("run_sweep",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MAY_IMPORT_RAY = (
    "sweeps",
    "trainables.training.launch",
    "trainables.training.stop_messages",
    "trainables.data.ray_pipeline",
    "trainables.common.cluster",
    "trainables.common.local_ray",
)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the product."""
    files = [
        ROOT / "run_sweep.py",
        *(f for top in ("search_spaces", "sweeps", "trainables") for f in (ROOT / top).rglob("*.py")),
    ]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


MODULES = modules()


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{file}, line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(name: str) -> str:
    """The room of a module in the order; empty for other packages."""
    return next((room for room in LEVEL if name == room or name.startswith(f"{room}.")), "")


def module_of(name: str) -> str:
    """The module that an imported name is or is defined in; empty for other packages."""
    return next((known for known in (name, name.rpartition(".")[0]) if known in MODULES), "")


def test_imports_follow_the_order() -> None:
    wrong = []
    for name, file in MODULES.items():
        here = room_of(name)
        assert here or name in ("sweeps", "trainables"), f"{name} is in no room of the order"
        for line, other in imported(file):
            there = room_of(other)
            # `sweeps` itself hands out its Python interface, and nothing imports `sweeps` itself.
            if here and there and there != here and LEVEL[there] >= LEVEL[here]:
                wrong.append(f"{name}, line {line}: imports {other}")
    assert not wrong


def test_imports_form_no_circle() -> None:
    """Including imports between files of one room, and under TYPE_CHECKING."""
    graph = {name: {module_of(other) for _, other in imported(file)} - {"", name} for name, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_launchers_and_the_sweep_import_ray() -> None:
    outside = {name: file for name, file in MODULES.items() if not name.startswith(MAY_IMPORT_RAY)}
    assert not [name for name, file in outside.items() for _, other in imported(file) if other.split(".")[0] == "ray"]


def test_search_spaces_are_data() -> None:
    heavy = {"torch", "ray", "diffusers", "numpy", "trainables", "sweeps"}
    spaces = {name: file for name, file in MODULES.items() if name.startswith("search_spaces")}
    assert not {name for name, file in spaces.items() for _, other in imported(file) if other.split(".")[0] in heavy}


def test_processes_of_a_method_on_pixels_do_without_what_they_do_not_need() -> None:
    """Each of these packages takes a process seconds to import; a driver and each of its trials would spend them."""
    code = """
import sys
import sweeps.command_line, sweeps.sweep, trainables.training.loop
import torch
from trainables.methods.build import build_method
from trainables.settings import override
from trainables.settings.presets import preset
method = {"method": "pix2pix", "pix2pix.downs": 5, "training.precision": "bf16"}
build_method(override(preset("sample").trial, method), torch.device("cpu"))
print(*sorted({"diffusers", "peft", "torchmetrics", "torchvision", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stdout + done.stderr
