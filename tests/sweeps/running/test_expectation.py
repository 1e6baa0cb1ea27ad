"""How long a sweep is expected to take."""

from __future__ import annotations

import re
import tempfile

import pytest

from sweeps.planning.plan import make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from sweeps.running.expectation import check_budget, expected_time
from trainables.common.errors import CannotRun


def test_a_confirmation_that_trains_nothing_takes_its_time() -> None:
    settings = SweepSettings("cfw_strength", trials=2, confirm=1, seeds=2, perceptual="none")
    line = expected_time(make_plan(resolve(settings), download=False), 0.0)
    assert re.search(r"search \d.* if no trial is stopped, confirmation \d", line), line


def test_a_full_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SweepSettings("cfw_strength", trials=2, confirm=0, perceptual="none", time_budget=60.0)
    plan = make_plan(resolve(settings), download=False)
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    assert expected_time(plan, 0.0).startswith("not known: TMPDIR /proc: cannot be written (")
    with pytest.raises(CannotRun, match=r"^TMPDIR /proc: cannot be written"):
        check_budget(plan)
