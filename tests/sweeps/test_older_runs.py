"""Runs of version 0.1 can be resumed: Tune's state names classes by the modules that they had then."""

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
def test_classes_are_found_under_their_older_names(
    module: str, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, now in RENAMED.items():
        monkeypatch.setitem(sys.modules, name, now)
    assert pickle.loads(f"c{module}\n{expected.__name__}\n.".encode()) is expected
