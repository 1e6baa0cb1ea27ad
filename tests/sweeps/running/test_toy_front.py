"""Multi-objective search and ASHA on a toy front of known hypervolume, with the real searcher and scheduler."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
from ray.tune.experiment import Trial

from search_spaces import Float, Point, SearchSpace
from sweeps.planning.objectives import Objective
from sweeps.planning.pareto import fronts
from sweeps.running.scheduler import SweepScheduler
from sweeps.running.search import SweepSearch
from sweeps.trial_config import PARAMETERS

STEPS, TRIALS, AT_ONCE, FACTOR = 27, 180, 4, 3.0
SPACE = SearchSpace(
    name="front",
    question="Which trade-off?",
    method="sinsr",
    parameters={"trade": Float(0.0, 1.0), "waste": Float(0.0, 1.0)},
    points=(Point("middle", {"trade": 0.5, "waste": 0.5}),),
    objective="val/psnr,val/ssim",
)


def values(parameters: dict[str, float], step: int) -> tuple[float, float]:
    """Without waste and at the last step, a point of the unit circle; training goes a third of the way in the first
    ninth of its steps.
    """
    angle = parameters["trade"] * math.pi / 2
    length = (1 - parameters["waste"] ** 2) * (step / STEPS) ** 0.5
    return length * math.cos(angle), length * math.sin(angle)


def hypervolume(points: list[tuple[float, float]]) -> float:
    """Of points to maximise, above the origin."""
    gains = np.array(points)
    area, height = 0.0, 0.0
    for first, second in sorted(gains[fronts(gains)[0]].tolist(), reverse=True):
        area, height = area + first * max(0.0, second - height), max(height, second)
    return area


def test_hypervolume_of_known_fronts() -> None:
    assert hypervolume([(1.0, 1.0), (0.5, 0.5)]) == 1.0
    assert hypervolume([(1.0, 0.5), (0.5, 1.0)]) == 0.75
    arc = [(math.cos(a), math.sin(a)) for a in np.linspace(0, math.pi / 2, 2000)]
    assert abs(hypervolume(arc) - math.pi / 4) < 1e-3


def test_front_is_found_with_half_of_the_steps(tmp_path: Path) -> None:
    search = SweepSearch(
        SPACE, "val/psnr", "max", 0, TRIALS, STEPS, tmp_path / "journal", further=(Objective("val/ssim", "max"),)
    )
    scheduler = SweepScheduler("val/psnr", "max", STEPS, STEPS // 9, FACTOR, further=(Objective("val/ssim", "max"),))
    draw, running, steps = random.Random(0), dict[str, tuple[Trial, int]](), 0
    reached: list[tuple[float, float]] = []
    started = 0
    while started < TRIALS or running:
        if started < TRIALS and len(running) < AT_ONCE:
            name = f"trial{started}"
            running[name] = Trial("function", stub=True, trial_id=name, config=search.suggest(name)), 0
            scheduler.on_trial_add(None, running[name][0])
            started += 1
            continue
        name = draw.choice(sorted(running))
        trial, step = running[name]
        step += 3
        steps += 3
        first, second = values(trial.config[PARAMETERS], step)
        result = {"val/psnr": first, "val/ssim": second, "step": step}
        search.on_trial_result(name, result)
        running[name] = trial, step
        if scheduler.on_trial_result(None, trial, result) == "STOP":
            scheduler.on_trial_complete(None, trial, result)
            search.on_trial_complete(name, result)
            if step >= STEPS:
                reached.append((first, second))
            del running[name]
    print(hypervolume(reached) / (math.pi / 4), steps / (STEPS * TRIALS), len(reached))
    assert hypervolume(reached) >= 0.95 * math.pi / 4
    assert steps <= STEPS * TRIALS / 2
