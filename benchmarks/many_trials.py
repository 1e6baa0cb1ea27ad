"""What a trial costs the driver, from the first to the ten thousandth: does anything grow with the number of trials?

The real recorder (record of events, tables, TensorBoard, progress), the real search (Optuna's TPE and its journal) and
the real scheduler (ASHA) are called in the order in which Ray Tune calls them. Results are made up: their values
improve with the steps, and ASHA stops most trials. Ray, training and Tune's own bookkeeping are left out.

    python -m benchmarks.many_trials                                    # 10,000 trials, 48 validation images
    python -m benchmarks.many_trials --trials 1000 --images 3000
    python -m benchmarks.many_trials --earlier 10000 --trials 10200     # a driver that resumes a sweep with 10,000
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from search_spaces import Choice, Distribution, Float, SearchSpace, Value, load
from sweeps.recording.image_values import VALIDATION
from sweeps.recording.progress import logger
from sweeps.recording.recorder import Recorder, RecorderSettings
from sweeps.recording.tables import RunTables
from sweeps.running.scheduler import SweepScheduler
from sweeps.running.search import SweepSearch
from sweeps.trial_config import ID
from trainables.training.measurements import Validation, encode_png
from trainables.training.reporting import Report
from trainables.training.results import payload

MAX_STEPS, REPORTS = 600, 6
METRICS = ("val/psnr", "val/ssim", "val/st_lpips")
LOSS_ROWS = 10
"""Rows of loss terms between two reports."""


class Clock:
    """Seconds of this process per part. A part inside another one counts for itself only."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self._inner: list[tuple[float, float]] = []

    def watch(self, owner: Any, names: Sequence[str], part: str) -> None:
        """Counts the calls of these methods of an object."""
        for name in names:
            setattr(owner, name, self.counted(getattr(owner, name), part))

    def counted(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            self._inner.append((0.0, 0.0))
            try:
                return function(*args, **kwargs)
            finally:
                took = time.process_time() - cpu, time.perf_counter() - wall
                inner = self._inner.pop()
                self.cpu[part] += took[0] - inner[0]
                self.wall[part] += took[1] - inner[1]
                if self._inner:
                    outer = self._inner[-1]
                    self._inner[-1] = outer[0] + took[0], outer[1] + took[1]

        return counted

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        taken = dict(self.cpu), dict(self.wall)
        self.cpu.clear()
        self.wall.clear()
        return taken


class MadeUpSweep:
    """The driver's side of a sweep whose trials report made-up results."""

    def __init__(self, folder: Path, trials: int, images: int, concurrent: int, clock: Clock, earlier: int = 0) -> None:
        space = load("sinsr_loss_ratios")
        self.images = [f"photograph_{k // 8:04d}@{k % 8 * 64:04d},0000" for k in range(images)]
        if earlier:
            self._record_earlier(folder, space, earlier)
        settings = RecorderSettings(
            str(folder), METRICS, space.distributions, MAX_STEPS, trials, len(space.points), concurrent, 0, METRICS[:1]
        )
        self.recorder = Recorder(settings)
        self.recorder.open()
        rows, reports_of = self.recorder.tables.leaderboard, self.recorder.tables.reports_of
        journal = folder / "optuna.journal"
        self.search = SweepSearch(space, METRICS[0], "max", 0, trials, MAX_STEPS, journal, None, rows, reports_of)
        self.scheduler: Any = SweepScheduler(METRICS[0], "max", MAX_STEPS, MAX_STEPS // REPORTS, 3.0, rows, reports_of)
        self.grid = encode_png(_picture())
        self.count, self.reports, self.concurrent = earlier, 0, concurrent
        self.running: list[tuple[Trial, int, float]] = []
        tables, board = self.recorder.tables, self.recorder.board
        clock.watch(tables, ["commit"], "events")
        clock.watch(tables, ["flush", "add_report", "add_per_image", "upsert_trial"], "tables")
        clock.watch(board, ["hparams", "report", "losses", "images", "restart"], "TensorBoard")
        clock.watch(self.recorder.progress, ["started", "reported", "ended"], "progress")
        clock.watch(
            self.recorder, ["on_trial_start", "on_trial_result", "on_trial_complete", "on_experiment_end"], "recorder"
        )
        clock.watch(self.search, ["suggest", "on_trial_result", "on_trial_complete"], "search")
        clock.watch(self.scheduler, ["on_trial_add", "on_trial_result", "on_trial_complete"], "ASHA")

    def _record_earlier(self, folder: Path, space: SearchSpace, count: int) -> None:
        """The record of trials of an earlier driver: every third one finished, the others were stopped at one sixth."""
        tables, draws = RunTables(folder), np.random.default_rng(0)
        for number in range(count):
            id, finished = f"t{number:03d}", number % 3 == 0
            known = dict(space.points[number].values) if number < len(space.points) else {}
            values = {name: known.get(name, _drawn(d, draws)) for name, d in space.distributions.items()}
            reports = range(1, REPORTS + 1) if finished else (1,)
            for report in reports:
                step = report * MAX_STEPS // REPORTS
                level = 20 + draws.normal() + math.log10(step)
                metrics = dict.fromkeys(METRICS, level)
                tables.add_report({"id": id, "step": step, "wall_seconds": 30.0, **metrics})
            tables.add_images(
                id, VALIDATION, step, self.images, {name: draws.normal(size=len(self.images)) for name in METRICS}
            )
            status = "finished" if finished else "stopped"
            config = {f"config/{name}": value for name, value in values.items()}
            tables.upsert_trial(
                {"id": id, "status": status, "seed": 0, "steps": step, "label": "", **config, **metrics}
            )
        tables.flush(force=True)

    def step(self) -> None:
        """One event: a trial starts if there is room, otherwise the oldest one reports."""
        if len(self.running) < self.concurrent:
            key = f"{self.count:08x}"
            config = self.search.suggest(key)
            trial = Trial("trial", stub=True, trial_id=key, config=config)
            self.scheduler.on_trial_add(None, trial)
            self.recorder.on_trial_start(0, [], trial)
            self.running.append((trial, 0, float(np.random.default_rng(self.count).normal())))
            self.count += 1
            return
        trial, reported, quality = self.running.pop(0)
        result = self._result(trial, (reported + 1) * MAX_STEPS // REPORTS, quality)
        self.reports += 1
        # Tune's order: callbacks, then scheduler and search.
        self.recorder.on_trial_result(0, [], trial, result)
        trial.run_metadata.last_result = result
        decision = self.scheduler.on_trial_result(None, trial, result)
        if decision == TrialScheduler.CONTINUE and reported + 1 < REPORTS:
            self.search.on_trial_result(trial.trial_id, result)
            self.running.append((trial, reported + 1, quality))
            return
        self.scheduler.on_trial_complete(None, trial, result)
        self.search.on_trial_complete(trial.trial_id, result)
        self.recorder.on_trial_complete(0, [], trial)

    def _result(self, trial: Trial, step: int, quality: float) -> dict[str, Any]:
        draws = np.random.default_rng([int(trial.config[ID][1:]), step])
        level = 20 + quality + math.log10(step)
        values = draws.normal(level, 2.0, (len(METRICS), len(self.images))).astype(np.float32)
        validation = Validation(dict(zip(METRICS, values, strict=True)), self.images, self.grid)
        losses = [
            (step - k, {"loss/distillation": 0.1, "loss/inversion": 0.2, "loss/ground_truth": 0.3, "weighted/sum": 0.6})
            for k in reversed(range(LOSS_ROWS))
        ]
        times = {"train/step_seconds": 0.3, "train/parameters": 532768.0, "train/busy_seconds": 30.0}
        return {**payload(Report(step, validation.means | times, losses, validation)), "time_total_s": 30.0}


def _drawn(distribution: Distribution, draws: np.random.Generator) -> Value:
    if isinstance(distribution, Choice):
        return distribution.values[draws.integers(len(distribution.values))]
    value = float(np.exp(draws.uniform(np.log(distribution.low), np.log(distribution.high))))
    return value if isinstance(distribution, Float) else int(value)


def _picture() -> np.ndarray:
    """uint8 (256, 192, 3), four rows of input | output | target, compressible as photographs are."""
    y, x = np.mgrid[0:256, 0:192]
    waves = 128 + 60 * np.sin(x / 17)[..., None] * np.cos(y / 23)[..., None] * np.array([1.0, 0.8, 0.6])
    return np.clip(waves + np.random.default_rng(0).normal(0, 4, waves.shape), 0, 255).astype(np.uint8)


def measure(folder: Path, trials: int, images: int, concurrent: int, earlier: int = 0) -> list[str]:
    """Prints one row for each window of trials; returns the rows."""
    clock = Clock()
    sweep = MadeUpSweep(folder, trials, images, concurrent, clock, earlier)
    clock.take()
    parts = ("events", "tables", "TensorBoard", "recorder", "progress", "search", "ASHA")
    rows = [f"{'trials':>12} {'reports':>8} {'ms, wall':>9} {'ms, CPU':>8}   CPU by part: {'  '.join(parts)}"]
    print(rows[0], flush=True)
    for first, last in _windows(trials, concurrent, earlier):
        while sweep.count < first:
            sweep.step()
        clock.take()
        reports = sweep.reports
        while sweep.count < last:
            sweep.step()
        cpu, wall = clock.take()
        count = last - first
        each = "  ".join(f"{1000 * cpu.get(part, 0.0) / count:{max(4, len(part))}.1f}" for part in parts)
        rows.append(
            f"{first:>5} - {last:<5} {(sweep.reports - reports) / count:8.1f} {1000 * sum(wall.values()) / count:8.1f} "
            f"{1000 * sum(cpu.values()) / count:8.1f}                {each}"
        )
        print(rows[-1], flush=True)
    while sweep.running:
        sweep.concurrent = 0
        sweep.step()
    began = time.perf_counter()
    sweep.recorder.on_experiment_end([])
    rows.append(f"last write of all tables: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    again = Recorder(sweep.recorder.settings)
    again.open()
    rows.append(f"a new driver reads the record: {time.perf_counter() - began:.1f} s")
    size = {path.name: path.stat().st_size / 1e6 for path in folder.iterdir() if path.is_file()}
    rows.append("MB: " + ", ".join(f"{name} {value:.1f}" for name, value in sorted(size.items())))
    rows.append(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    print("\n".join(rows[-4:]))
    return rows


def _windows(trials: int, concurrent: int, earlier: int) -> list[tuple[int, int]]:
    """The first and last trial of each measured window: a tenth of the trials before it."""
    if earlier:
        return [(earlier + 2 * concurrent, trials)]
    ends = [end for end in (100, 300, 1000, 3000, 10000, 30000) if end < trials]
    return [(max(concurrent, end - max(50, end // 10)), end) for end in [*ends, trials]]


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--trials", type=int, default=10000, help="number of trials (10000)")
    flags.add_argument("--images", type=int, default=48, help="validation images of each report (48)")
    flags.add_argument("--earlier", type=int, default=0, help="trials that an earlier driver recorded (0)")
    flags.add_argument("--concurrent", type=int, default=8, help="trials at once (8)")
    flags.add_argument("--folder", type=Path, default=None, help="keep the run in this folder")
    given = flags.parse_args(arguments)
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with tempfile.TemporaryDirectory(prefix="many-trials-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, given.trials, given.images, given.concurrent, given.earlier)


if __name__ == "__main__":
    main()
