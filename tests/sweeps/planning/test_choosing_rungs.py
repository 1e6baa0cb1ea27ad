"""Rungs leave some proposals to finish, and a configuration counts once."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.experiment import Trial

from sweeps.planning.choosing_rungs import LEAST_FINISHING, expected_to_finish, rung_steps
from sweeps.running.scheduler import SweepScheduler
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND


@pytest.mark.parametrize("reduction", [1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize(("max_steps", "report_every"), [(300, 50), (25_000, 2500), (7, 3), (1, 1), (20_000, 1000)])
def test_some_proposals_finish(reduction: float, max_steps: int, report_every: int) -> None:
    for proposals in range(60):
        rungs = rung_steps(max_steps, report_every, reduction, proposals)
        assert rungs == sorted(set(rungs)) and all(0 < step < max_steps for step in rungs)
        assert not rungs or rungs[0] % report_every == 0
        least = min(LEAST_FINISHING, proposals)
        assert proposals / reduction ** len(rungs) >= least - 1e-9
        assert expected_to_finish(len(rungs), reduction, proposals) >= least


def test_more_proposals_have_more_and_earlier_rungs() -> None:
    assert [rung_steps(2700, 100, 3.0, count) for count in (5, 6, 17, 18, 54)] == [
        [],
        [900],
        [900],
        [300, 900],
        [100, 300, 900],
    ]


def of(kind: str, number: int, given: bool = False) -> Trial:
    return Trial("function", stub=True, trial_id=str(number), config={ID: str(number), GIVEN: given, KIND: kind})


def decision(scheduler: SweepScheduler, trial: Trial, value: float, step: int = 2) -> str:
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"step": step, "val/psnr": value})


def test_the_confirmation_fills_no_rung() -> None:
    """Else its seeds of a good configuration would be rivals of every proposal."""
    scheduler = SweepScheduler("val/psnr", "max", 8, 2, 2.0)
    for number in range(4):
        assert decision(scheduler, of(CONFIRMATION, number, given=True), 40.0) == "CONTINUE"
    assert decision(scheduler, of("trial", 10), 20.0) == "CONTINUE"
    assert decision(scheduler, of("trial", 11), 10.0) == "STOP"
    last = of(CONFIRMATION, 12, given=True)
    assert decision(scheduler, last, 30.0, step=8) == "CONTINUE"  # it ends by itself
    scheduler.on_trial_complete(None, last, {"step": 8, "val/psnr": 30.0})
    assert decision(scheduler, of("trial", 13), 21.0) == "CONTINUE"


def test_seeds_of_one_configuration_in_an_old_run_count_once() -> None:
    """Version 0.1 repeated the baseline with other seeds in its search."""
    rows: list[dict[str, Any]] = [
        {"id": str(k), "status": "finished", "config/lora.rank": 8, "config/method": "sinsr"} for k in range(3)
    ]

    def scheduler(rows: list[dict[str, Any]]) -> SweepScheduler:
        reports = {str(k): [{"step": 2, "val/psnr": 40.0 + k}] for k in range(3)}
        return SweepScheduler("val/psnr", "max", 8, 2, 2.0, rows, lambda id: reports.get(id, []))

    different = [row | {"config/lora.rank": k} for k, row in enumerate(rows)]
    # 40.5 is the better half of 40 and itself, and the worse half of 40, 41, 42 and itself.
    decisions = [decision(made, of("trial", 10), 40.5) for made in (scheduler(rows), scheduler(different))]
    assert decisions == ["CONTINUE", "STOP"]
