"""What a trial costs the driver, from the first to the ten thousandth: does anything grow with the number of trials?

The real recorder (record of events, tables, TensorBoard, progress), the real search (Optuna's TPE and its journal) and
the real scheduler (ASHA) are called in the order in which Ray Tune calls them. Results are made up: their values
improve with the steps, and ASHA stops most trials. Ray, training and Tune's own bookkeeping are left out.

With `--tune`, Tune itself calls them: its trials run in processes of a real Ray and report the made-up results at once.

    python -m benchmarks.many_trials                                    # 10,000 trials, 48 validation images
    python -m benchmarks.many_trials --tune --concurrent 2              # the same through Ray Tune
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
from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from search_spaces import Choice, Distribution, Float, SearchSpace, Value, load
from sweeps.planning.settings import SweepSettings
from sweeps.recording.image_values import VALIDATION
from sweeps.recording.progress import logger
from sweeps.recording.recorder import Recorder, RecorderSettings
from sweeps.recording.tables import RunTables
from sweeps.running.ray_cluster import connected
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
PARTS = ("events", "tables", "TensorBoard", "recorder", "progress", "search", "ASHA")


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


class Table:
    """Prints one row for each window of trials, when its last trial has started.

    Args:
        windows: the first and last trial of each.
        around: the part of what the clock does not count: all other CPU seconds of this process; empty to leave that
            out.

    Attributes:
        rows: what was printed.
    """

    def __init__(self, clock: Clock, windows: Sequence[tuple[int, int]], around: str = "") -> None:
        self._clock, self._windows, self._around = clock, list(windows), around
        self._parts = (*PARTS, around) if around else PARTS
        self._began: tuple[int, float, float] | None = None
        self.rows: list[str] = []
        self._print(
            f"{'trials':>12} {'reports':>8} {'ms, wall':>9} {'ms, CPU':>8}   CPU by part: {'  '.join(self._parts)}"
        )

    def _print(self, row: str) -> None:
        self.rows.append(row)
        print(row, flush=True)

    def passed(self, started: int, reports: int) -> None:
        """Call it after each event, with the numbers of trials and of reports so far."""
        if self._began and started >= self._windows[0][1]:
            self._end(*self._began, started, reports)
        if self._began is None and self._windows and started >= self._windows[0][0]:
            self._clock.take()
            self._began = reports, time.process_time(), time.perf_counter()

    def _end(self, reports_before: int, cpu_before: float, wall_before: float, started: int, reports: int) -> None:
        (first, _), self._began = self._windows.pop(0), None
        count, (cpu, wall) = started - first, self._clock.take()
        wall_seconds = sum(wall.values())
        if self._around:
            cpu[self._around] = time.process_time() - cpu_before - sum(cpu.values())
            wall_seconds = time.perf_counter() - wall_before
        each = "  ".join(f"{1000 * cpu.get(part, 0.0) / count:{max(4, len(part))}.1f}" for part in self._parts)
        self._print(
            f"{first:>5} - {started:<5} {(reports - reports_before) / count:8.1f} {1000 * wall_seconds / count:8.1f} "
            f"{1000 * sum(cpu.values()) / count:8.1f}                {each}"
        )


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
        self.running: list[tuple[Trial, int]] = []
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
            self.running.append((trial, 0))
            self.count += 1
            return
        trial, reported = self.running.pop(0)
        made = made_up(trial.config[ID], (reported + 1) * MAX_STEPS // REPORTS, self.images, self.grid)
        result = {**made, "time_total_s": 30.0}
        self.reports += 1
        # Tune's order: callbacks, then scheduler and search.
        self.recorder.on_trial_result(0, [], trial, result)
        trial.run_metadata.last_result = result
        decision = self.scheduler.on_trial_result(None, trial, result)
        if decision == TrialScheduler.CONTINUE and reported + 1 < REPORTS:
            self.search.on_trial_result(trial.trial_id, result)
            self.running.append((trial, reported + 1))
            return
        self.scheduler.on_trial_complete(None, trial, result)
        self.search.on_trial_complete(trial.trial_id, result)
        self.recorder.on_trial_complete(0, [], trial)


def made_up(id: str, step: int, images: list[str], grid: bytes) -> dict[str, Any]:
    """The result that a trial reports at a step."""
    number = int(id[1:])
    level = 20 + float(np.random.default_rng(number).normal()) + math.log10(step)
    values = np.random.default_rng([number, step]).normal(level, 2.0, (len(METRICS), len(images))).astype(np.float32)
    validation = Validation(dict(zip(METRICS, values, strict=True)), images, grid)
    losses = [
        (step - k, {"loss/distillation": 0.1, "loss/inversion": 0.2, "loss/ground_truth": 0.3, "weighted/sum": 0.6})
        for k in reversed(range(LOSS_ROWS))
    ]
    times = {"train/step_seconds": 0.3, "train/parameters": 532768.0, "train/busy_seconds": 30.0}
    return payload(Report(step, validation.means | times, losses, validation))


class Started(Callback):
    """Counts trials and reports for the table, while Tune runs."""

    def __init__(self, table: Table, earlier: int) -> None:
        self._table, self._trials, self._reports = table, earlier, 0

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials += 1

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self._reports += 1

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._table.passed(self._trials, self._reports)


def run_through_tune(sweep: MadeUpSweep, table: Table, scratch: Path, trials: int, earlier: int) -> None:
    """Runs the trials with Ray Tune, in reused processes, as a sweep does whose trials have one worker."""
    images, grid = sweep.images, sweep.grid

    def trial(config: dict[str, Any]) -> None:
        for report in range(1, REPORTS + 1):
            tune.report(made_up(config[ID], report * MAX_STEPS // REPORTS, images, grid))

    settings = SweepSettings("sinsr_loss_ratios", workers_per_trial=1, gpus_per_worker=0.0)
    with connected(settings, sweep.concurrent):
        tune.Tuner(
            tune.with_resources(trial, tune.PlacementGroupFactory([{"CPU": 1}])),
            tune_config=tune.TuneConfig(
                search_alg=sweep.search,
                scheduler=sweep.scheduler,
                num_samples=trials - earlier,
                max_concurrent_trials=sweep.concurrent,
                reuse_actors=True,
                trial_name_creator=_id,
                trial_dirname_creator=_id,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(scratch), callbacks=[sweep.recorder, Started(table, earlier)], verbose=0
            ),
        ).fit()


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


def _id(trial: Trial) -> str:
    return str(trial.config[ID])


def measure(
    folder: Path, trials: int, images: int, concurrent: int, earlier: int = 0, through_tune: bool = False
) -> list[str]:
    """Prints one row for each window of trials; returns the rows."""
    clock = Clock()
    sweep = MadeUpSweep(folder, trials, images, concurrent, clock, earlier)
    table = Table(clock, _windows(trials, concurrent, earlier), "Tune and Ray" if through_tune else "")
    after: list[str] = []
    if through_tune:
        run_through_tune(sweep, table, folder / "scratch", trials, earlier)
    else:
        while sweep.count < trials:
            sweep.step()
            table.passed(sweep.count, sweep.reports)
        while sweep.running:
            sweep.concurrent = 0
            sweep.step()
        began = time.perf_counter()
        sweep.recorder.on_experiment_end([])
        after.append(f"last write of all tables: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    again = Recorder(sweep.recorder.settings)
    again.open()
    after.append(f"a new driver reads the record: {time.perf_counter() - began:.1f} s")
    size = {path.name: path.stat().st_size / 1e6 for path in folder.iterdir() if path.is_file()}
    after.append("MB: " + ", ".join(f"{name} {value:.1f}" for name, value in sorted(size.items())))
    after.append(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    print("\n".join(after))
    return table.rows + after


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
    flags.add_argument("--tune", action="store_true", help="through Ray Tune, in processes of a real Ray")
    flags.add_argument("--folder", type=Path, default=None, help="keep the run in this folder")
    given = flags.parse_args(arguments)
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with tempfile.TemporaryDirectory(prefix="many-trials-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, given.trials, given.images, given.concurrent, given.earlier, given.tune)


if __name__ == "__main__":
    main()
