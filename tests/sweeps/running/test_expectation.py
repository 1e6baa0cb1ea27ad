"""How long a sweep is expected to take."""

from __future__ import annotations

import re

from sweeps.planning.plan import make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from sweeps.running.expectation import expected_time


def test_a_confirmation_that_trains_nothing_takes_its_time() -> None:
    settings = SweepSettings("cfw_strength", trials=2, confirm=1, seeds=2, perceptual="none")
    line = expected_time(make_plan(resolve(settings), download=False), 0.0)
    assert re.search(r"search \d.* if no trial is stopped, confirmation \d", line), line
