"""ASHA for one objective equals Ray's; for several it keeps the front."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from sweeps.planning.objectives import Objective
from sweeps.planning.pareto import epsilon_net, fronts
from sweeps.running.rungs import percentile, scores
from sweeps.running.scheduler import SweepScheduler
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, PARAMETERS
from trainables.training.results import BEST


def proposed(number: int, **config: Any) -> Trial:
    id = f"t{number + 1:03d}"  # t000 is the baseline
    return Trial("function", stub=True, trial_id=id, config={ID: id, GIVEN: False, **config})


@pytest.mark.parametrize("seed", range(6))
def test_one_objective_decides_as_rays_asha(seed: int) -> None:
    """Random sweeps: values, ties, skipped reports, several trials at once."""
    draw = random.Random(seed)
    mode, last, factor = draw.choice(("max", "min")), draw.choice((8, 27, 100)), draw.choice((1.5, 2.0, 3.0, 4.0))
    first = draw.choice((1, 2, 3))
    ours = SweepScheduler("value", mode, last, first, factor)
    theirs = ASHAScheduler("step", "value", mode, max_t=last, grace_period=first, reduction_factor=factor)
    running, started, stopped = {}, 0, 0
    for _ in range(400):
        if len(running) < 4:
            trial = proposed(started)
            ours.on_trial_add(None, trial)
            theirs.on_trial_add(None, trial)
            running[trial.trial_id] = trial, 0
            started += 1
        id = draw.choice(list(running))
        trial, step = running[id]
        step += draw.choice((1, 1, 1, 2, 5))
        result = {"step": step, "value": float(draw.choice((draw.gauss(0, 1), draw.randint(0, 2))))}
        decision = ours.on_trial_result(None, trial, result)
        assert decision == theirs.on_trial_result(None, trial, result)
        running[id] = trial, step
        if decision == "STOP":
            ours.on_trial_complete(None, trial, result)
            theirs.on_trial_complete(None, trial, result)
            del running[id]
            stopped += step < last
    assert stopped > 10


def test_trial_that_keeps_its_best_step_is_judged_by_it() -> None:
    """At a rung counts the best value so far, also of trials of an earlier driver."""
    reports = [{"step": 1, "value": 5.0}, {"step": 3, "value": 1.0}]
    row = {"id": "t001", "kind": "trial", "status": "finished", "config/x": 1}
    decisions = {}
    for keeps in (True, False):
        ours = SweepScheduler("value", "max", 9, 3, 3.0, [row], lambda id: reports, keeps_best=keeps)
        result = {"step": 3, "value": 2.0, **({BEST: [1, {"value": 4.0}]} if keeps else {})}
        decisions[keeps] = ours.on_trial_result(None, proposed(1), result)
    assert decisions == {True: "STOP", False: "CONTINUE"}  # 4 against 5, and 2 against 1


@pytest.mark.parametrize("seed", range(8))
def test_decisions_after_a_resume_are_those_of_one_driver(seed: int) -> None:
    """Of a space with few configurations, which are proposed again with other seeds; some trials fail."""
    draw = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    reports: dict[str, list[dict[str, Any]]] = {}
    trials: dict[str, Trial] = {}
    running: dict[str, int] = {}

    def scheduler(known: bool) -> SweepScheduler:
        found = [*rows.values()] if known else []
        return SweepScheduler("value", "max", 27, 3, 3.0, found, lambda id: reports.get(id, []) if known else [])

    def play(drivers: list[SweepScheduler], moves: int) -> int:
        stopped = 0
        for _ in range(moves):
            if len(running) < 4:
                x = draw.choice((0.1, 0.2, 0.3, 0.4))
                trial = proposed(len(trials), **{PARAMETERS: {"x": x, "kernel": (3, 3)}})
                id = trial.config[ID]
                rows[id] = {"id": id, "kind": "trial", "status": "running", "config/x": x, "config/kernel": "[3, 3]"}
                trials[id], running[id], reports[id] = trial, 0, []
                for driver in drivers:
                    driver.on_trial_add(None, trial)
            id = draw.choice(sorted(running))
            running[id] += draw.choice((1, 2, 3))
            result = {"step": running[id], "value": rows[id]["config/x"] + draw.gauss(0, 0.1)}
            reports[id].append(result)
            decisions = {driver.on_trial_result(None, trials[id], result) for driver in drivers}
            assert len(decisions) == 1
            failed = draw.random() < 0.03
            if failed or decisions == {"STOP"}:
                rows[id]["status"] = "failed" if failed else "finished" if running[id] >= 27 else "stopped"
                for driver in drivers if not failed else ():
                    driver.on_trial_complete(None, trials[id], result)
                del running[id]
                stopped += rows[id]["status"] == "stopped"
        return stopped

    whole = scheduler(known=False)
    play([whole], 150)
    resumed = scheduler(known=True)
    for id in running:
        resumed.on_trial_add(None, trials[id])
    assert play([whole, resumed], 400) > 5


def test_non_dominated_sorting() -> None:
    gains = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [1.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    assert fronts(gains) == [[0, 1, 2], [4], [3, 5]]


def test_epsilon_net_spreads_over_the_front() -> None:
    front = np.array([[0.0, 4.0], [0.1, 3.9], [2.0, 2.0], [4.0, 0.0], [3.9, 0.1]])
    assert epsilon_net(front)[:3] == [3, 0, 2]


def test_scores_rank_fronts_first() -> None:
    gains = np.array([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]])
    assert scores(gains).tolist() == [-2.0, 0.0, -1.0]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 999])
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 4.0])
def test_percentile_is_numpys(count: int, factor: float) -> None:
    values = np.random.default_rng(count).normal(25.0, 3.0, count)
    percent = (1 - 1 / factor) * 100
    assert percentile(sorted(values.tolist()), percent) == np.percentile(values, percent)


def test_dominated_trials_stop_and_both_ends_of_the_front_go_on() -> None:
    scheduler = SweepScheduler("sharp", "max", 9, 1, 3.0, further=(Objective("far", "min"),))
    decisions = {}
    for number, (sharp, far) in enumerate([(1.0, 1.0), (5.0, 5.0), (0.5, 2.0), (0.0, 0.0), (6.0, 6.0), (4.9, 5.5)]):
        trial = proposed(number)
        decisions[sharp, far] = scheduler.on_trial_result(None, trial, {"step": 1, "sharp": sharp, "far": far})
    assert decisions[0.5, 2.0] == decisions[4.9, 5.5] == "STOP"
    assert decisions[5.0, 5.0] == decisions[6.0, 6.0] == "CONTINUE"


def test_trials_of_the_confirmation_neither_stop_nor_count() -> None:
    """A search that goes on after its confirmation is compared with itself alone."""
    scheduler = SweepScheduler("value", "max", 8, 2, 3.0)
    confirmed = proposed(90, **{KIND: CONFIRMATION})
    scheduler.on_trial_add(None, confirmed)
    for step in (2, 8, 16):  # its training may be longer
        assert scheduler.on_trial_result(None, confirmed, {"step": step, "value": 99.0}) == "CONTINUE"
    assert scheduler.on_trial_result(None, proposed(0), {"step": 2, "value": 1.0}) == "CONTINUE"
    rows = [{"id": "c000", "kind": CONFIRMATION, "status": "finished"}]
    again = SweepScheduler("value", "max", 8, 2, 3.0, rows, lambda id: [{"step": 2, "value": 99.0}])
    assert again.on_trial_result(None, proposed(0), {"step": 2, "value": 1.0}) == "CONTINUE"
