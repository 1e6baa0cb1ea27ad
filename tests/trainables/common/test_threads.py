"""A command computes with as many threads as its container allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.paths import ROOT
from trainables.common import machine
from trainables.restore import main


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_restore_keeps_to_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    (tmp_path / "cpu.max").write_text("150000 100000\n", encoding="utf-8")
    monkeypatch.setattr(machine, "_own_cgroups", lambda: iter([tmp_path]))
    finished = ROOT / "trainables" / "assets" / "stablesr_cfw_sample"
    assert main([str(finished), str(tmp_path / "picture.png"), str(tmp_path / "restored")]) == 0
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("two_threads")
def test_a_smaller_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `OMP_NUM_THREADS`."""
    monkeypatch.setattr(machine, "usable_cpus", lambda: 64)
    machine.limit_threads()
    assert torch.get_num_threads() == 2
