"""The time to start a trial: in the trial's own process as our sweeps do, and with Ray's documented pattern.

Documented: a Tune function builds a `TorchTrainer` with one worker and fits it. Both run on the same local Ray, with
the same training function, one trial at a time. The documented pattern gets favourable conditions: its drivers take no
CPU, Train's controller polls ten times as often as by default, and driver processes are reused.

    python -m benchmarks.launch_overhead --trials 4
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.update(  # Ray reads these when it is imported or started
    RAY_TRAIN_V2_ENABLED="1",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
)

import ray
import torch
from ray import train as ray_train
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from sweeps.planning.settings import BASE_METRICS
from trainables.data.prepare import prepare
from trainables.methods.sinsr import SinSR
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset
from trainables.training.job import Workers
from trainables.training.launch import trial_resources
from trainables.training.loop import Trainer, World
from trainables.training.memory import free_memory

LAUNCHED, READY = "launched", "ready"
"""Seconds from the first line of the trial's function to the training function's first and last line."""

Work = Callable[[], None]
Launcher = Callable[[Work, str], None]


def ours(work: Work, folder: str) -> None:
    """Train's local mode in the trial's own process; see `trainables.training.launch`."""
    begun = time.time()

    def train_function() -> None:
        launched = time.time() - begun
        work()
        tune.report({LAUNCHED: launched, READY: time.time() - begun})

    TorchTrainer(train_function, scaling_config=ray_train.ScalingConfig(num_workers=0)).fit()
    free_memory()


def documented(work: Work, folder: str) -> None:
    """A Train run with one worker, started from a Tune function."""
    begun = time.time()

    def train_function() -> None:
        launched = time.time() - begun
        work()
        ray_train.report({LAUNCHED: launched, READY: time.time() - begun})

    TorchTrainer(
        train_function,
        scaling_config=ray_train.ScalingConfig(num_workers=1),
        run_config=ray_train.RunConfig(
            storage_path=folder,
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # annotated with the base of another class
        ),
    ).fit()


LAUNCHERS: dict[str, tuple[Launcher, tune.PlacementGroupFactory]] = {
    "documented": (documented, trial_resources(Workers(2))),  # as for our worker groups: a driver takes no CPU
    "ours": (ours, trial_resources(Workers(1))),
}


def nothing() -> None:
    """A training function that returns at once, so that only the launch is measured."""


def first_step(store: Path) -> Work:
    """A training function that builds a SinSR trial of the sample preset from the shipped weights and takes one step.

    Its data are prepared before, as a sweep does before its first trial.
    """
    settings: TrialSettings = override(
        preset("sample").trial, {"pairs.train_pairs": 8, "pairs.validation_pairs": 1, "sinsr.draws": 1}
    )
    columns = SinSR.columns(settings)
    prepare(settings, store, columns)

    def work() -> None:
        torch.set_num_threads(1)
        prepared = prepare(settings, store, columns)
        trainer = Trainer(settings, prepared, (*BASE_METRICS, "val/st_lpips"), World())
        trainer.train_until(1)

    return work


@contextmanager
def local_ray() -> Iterator[None]:
    """A local Ray, with the dashboard, because Train frees its placement groups through it."""
    ray.init(
        address="local",
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def run_trials(name: str, work: Work, trials: int, folder: str) -> tuple[list[dict[str, Any]], float]:
    """Each trial's report, in the order of their start, and the total seconds of all trials."""
    launcher, resources = LAUNCHERS[name]
    started = time.monotonic()
    results = tune.Tuner(
        tune.with_resources(lambda config: launcher(work, folder), resources),
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()
    taken = time.monotonic() - started
    if results.errors:
        raise results.errors[0]
    return [dict(results[k].metrics or {}) for k in range(trials)], taken


def show(title: str, key: str, measured: dict[str, tuple[list[dict[str, Any]], float]]) -> None:
    print(f"\n{title}\n{'':12} {'first':>8} {'later, median':>14} {'later, longest':>15} {'all, wall':>10}   seconds")
    later = {name: [report[key] for report in reports[1:]] for name, (reports, _) in measured.items()}
    for name, (reports, wall) in measured.items():
        middle, longest = statistics.median(later[name]), max(later[name])
        print(f"{name:12} {reports[0][key]:8.3f} {middle:14.4f} {longest:15.4f} {wall:10.1f}")
    if len(measured) == 2:
        ratio = statistics.median(later["documented"]) / statistics.median(later["ours"])
        in_all = measured["documented"][1] / measured["ours"][1]
        print(f"documented / ours: {ratio:.1f} for later trials, {in_all:.1f} in all")


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.launch_overhead", description=(__doc__ or "").split("\n")[0]
    )
    flags.add_argument("--trials", type=int, default=4, metavar="N", help="trials of each, 2 or more (4)")
    flags.add_argument("--launchers", nargs="+", default=list(LAUNCHERS), choices=LAUNCHERS, help="(all)")
    flags.add_argument("--train", nargs="+", default=["nothing", "sinsr"], choices=("nothing", "sinsr"), help="(both)")
    given = flags.parse_args(arguments)
    if given.trials < 2:
        flags.error(f"--trials {given.trials}: expected 2 or more, a first one and a later one")
    with tempfile.TemporaryDirectory() as folder:
        works: dict[str, Work] = {"nothing": nothing}
        if "sinsr" in given.train:
            works["sinsr"] = first_step(Path(folder) / "store")
        with local_ray():
            print(f"{given.trials} trials of each, one at a time, one worker of 1 CPU each")
            for train in given.train:
                measured = {name: run_trials(name, works[train], given.trials, folder) for name in given.launchers}
                if train == "nothing":
                    show("To the first line of a training function that does nothing", LAUNCHED, measured)
                else:
                    show("To the end of a SinSR trial's first step, shipped weights, sample preset", READY, measured)


if __name__ == "__main__":
    main()
