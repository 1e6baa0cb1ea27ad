"""Trials of the tests' own through Ray Tune, with the sweep's scheduler and its watch over failing nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune

from sweeps.running.failing_nodes import FailingNodes
from sweeps.running.scheduler import SweepScheduler
from sweeps.trial_config import GIVEN, ID
from trainables.training.job import Workers
from trainables.training.launch import trial_resources


def run_trials(trial: Any, nodes: FailingNodes, folder: Path, trials: int, tries: int) -> list[Any]:
    """Runs trials with one worker through Ray Tune, two at once, each at most so many times; returns Tune's results.

    Args:
        trial: the function that Tune calls, with the trial's config. nodes: made for one worker.
    """
    tuner = tune.Tuner(
        tune.with_resources(trial, trial_resources(Workers(1))),
        param_space={ID: tune.grid_search([f"t{number:03d}" for number in range(trials)]), GIVEN: True},
        tune_config=tune.TuneConfig(
            scheduler=SweepScheduler("val/psnr", "max", 9, 9, 3.0, nodes=nodes),
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[nodes],
            failure_config=tune.FailureConfig(max_failures=tries - 1),
            verbose=0,
        ),
    )
    return list(tuner.fit())
