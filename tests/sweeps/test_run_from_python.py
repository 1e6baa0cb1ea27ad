"""`sweeps.run` checks what the command line checks, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

import sweeps
from tests.helpers.sweep import SPACE, TINY
from trainables.common.errors import InputError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"warm_start": "nothing here"}, r"--warm-start .*nothing here"),
        ({"time_budget": 0.01}, "expected time for more than one trial"),
        ({"budget_usd": 0.01, "price_per_hour": 1e6}, "--budget-usd 0.01: a trial takes about"),
    ],
)
def test_earlier_runs_and_limits_are_checked(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    places = {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")}
    with pytest.raises(InputError, match=message):
        sweeps.run(SPACE, set=TINY, trials=2, max_steps=20, perceptual="none", **places, **flags)
    assert list(tmp_path.iterdir()) == [] and not ray.is_initialized()
