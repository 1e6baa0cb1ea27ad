"""Runs of version 0.1 can be resumed, although Tune's state names classes by the old module names."""

from __future__ import annotations

import pickle
import sys

import pytest

from sweeps.recording.recorder import Recorder
from sweeps.running.search import SweepScheduler, SweepSearch
from sweeps.sweep import RENAMED


@pytest.mark.parametrize(
    ("module", "expected"),
    [("sweeps.recorder", Recorder), ("sweeps.search", SweepSearch), ("sweeps.search", SweepScheduler)],
)
def test_classes_are_found_under_old_module_names(module: str, expected: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, now in RENAMED.items():
        monkeypatch.setitem(sys.modules, name, now)
    assert pickle.loads(f"c{module}\n{expected.__name__}\n.".encode()) is expected
