"""The time that fresh degradations add to training, against prepared pairs.

Without `--beside`: what degrading anew in every epoch (`pairs.degraded=online`) adds to a step. Both trainers run the
product's own training loop on the same targets, with equal networks and optimisers, and take turns. The online one
degrades the pairs of later steps in a thread, and encodes them if the method reads latents.

    python -m benchmarks.fresh_pairs --methods pix2pix resshift latent_diffusion

With `--beside K`: what preparing K variants of the pairs while a trial trains (`pairs.variants=K`) adds to the trial,
against one that finds all of them prepared. Trials run in processes of Ray, as in a sweep, and take turns. All variants
but the first are prepared by one process of the product, which has started before the trial, as in a sweep.

    python -m benchmarks.fresh_pairs --beside 4 --methods pix2pix resshift
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import ray
import torch

from benchmarks.latent_step import measure, medians
from trainables.data.estimate import degrading_seconds
from trainables.data.prepare import make_stores, prepare
from trainables.data.prepared import open_stores
from trainables.data.ray_pipeline import BackgroundWorkers, connected_for_preparation
from trainables.data.stages.needed import needed_stages
from trainables.data.stages.stage import Stage
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.settings.presets import PRESETS, preset
from trainables.training.loop import Trainer, World, train

METHODS = ("pix2pix", "resshift", "latent_diffusion")
MODES = ("prepared", "online")


def benchmark_settings(name: str, method: str, size: int, batch: int) -> TrialSettings:
    """The preset on a few crops of the sample photographs. size: pixels. batch: 0 for the preset's."""
    chosen = preset(name)
    changes: dict[str, object] = {
        "method": method,
        "data.source": "sample",
        "pairs.image_size": size or chosen.trial.pairs.image_size,
        "pairs.train_pairs": 32,
        "pairs.validation_pairs": 1,
        "training.batch_size": batch or chosen.trial.training.batch_size,
        "training.max_steps": 100_000,
    }
    return override(chosen.trial, {**chosen.methods.get(method, {}), **changes})


def row(settings: TrialSettings, store: Path, turns: int, steps: int) -> str:
    """A line of the table: CPU milliseconds per step by mode, and what the online one adds."""
    trainers = {}
    for mode in MODES:
        own = override(settings, {"pairs.degraded": mode})
        prepared = prepare(own, store, method_class(own.method).columns(own))
        trainers[mode] = Trainer(own, prepared, ("val/psnr",), World())
    taken = measure(trainers, turns, steps)
    plain, fresh = (medians(taken[mode]) for mode in MODES)
    added = [f.cpu / p.cpu - 1 for p, f in zip(*(taken[mode] for mode in MODES), strict=True)]
    each = degrading_seconds(override(settings, {"pairs.degraded": "online"}))
    return (
        f"{settings.method:20} {1000 * each:9.2f} {1000 * plain.cpu:9.1f} {1000 * fresh.cpu:9.1f}"
        f" {fresh.cpu / plain.cpu - 1:+8.1%} {f'{min(added):+.1%} to {max(added):+.1%}':>19}"
        f" {fresh.wall / plain.wall - 1:+13.1%}"
    )


def train_once(settings: TrialSettings, stages: Sequence[Stage]) -> float:
    """Seconds of a trial from opening its stores to its end, in this process."""
    torch.set_num_threads(1)
    started = time.monotonic()
    train(settings, open_stores(settings, stages), ("val/psnr",), World(), lambda report, write: None)
    return time.monotonic() - started


def beside_row(settings: TrialSettings, folder: Path, turns: int, trials: int) -> str:
    """A line of the table: seconds of a trial by mode, what the preparation beside it adds, and its own seconds.

    Args:
        trials: that run at once.
    """

    def stages_in(root: Path) -> list[Stage]:
        return needed_stages(settings, root, method_class(settings.method).columns(settings))

    run_trial = ray.remote(num_cpus=1)(train_once)

    def trial(stages: Sequence[Stage]) -> float:
        return statistics.fmean(ray.get([run_trial.remote(settings, stages) for _ in range(trials)]))

    before = stages_in(folder / "before")
    make_stores(settings, before)
    short = override(settings, {"training.max_steps": 1, "training.warmup_steps": 0, "training.reports": 1})
    ray.get([run_trial.remote(short, before) for _ in range(trials)])  # starts the processes
    taken, prepared_in = list[tuple[float, float]](), list[float]()
    for turn in range(turns):
        beside = stages_in(folder / f"beside {turn}")
        for one, other in zip(before, beside, strict=True):
            if not other.variant:
                shutil.copytree(one.folder.local, other.folder.local)
        background = BackgroundWorkers(1)
        warm_up = [stage for stage in stages_in(folder / f"warm-up {turn}") if stage.split == "validation"]
        make_stores(settings, warm_up, run=background)
        started = time.monotonic()

        def prepare_rest(
            stages: Sequence[Stage] = beside, run: BackgroundWorkers = background, started: float = started
        ) -> None:
            make_stores(settings, stages, run=run)
            prepared_in.append(time.monotonic() - started)

        thread = threading.Thread(target=prepare_rest)
        thread.start()
        with_rest = trial(beside)
        thread.join()
        background.close()
        taken.append((trial(before), with_rest))
    plain, fresh = (statistics.median(column) for column in zip(*taken, strict=True))
    added = [b / a - 1 for a, b in taken]
    return (
        f"{settings.method:20} {plain:9.1f} {fresh:9.1f} {fresh / plain - 1:+8.1%}"
        f" {f'{min(added):+.1%} to {max(added):+.1%}':>19} {statistics.median(prepared_in):11.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks.fresh_pairs", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--preset", default="sample", choices=PRESETS, help="settings of trials (sample)")
    flags.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME", help=f"({' '.join(METHODS)})")
    flags.add_argument("--size", type=int, default=0, metavar="PIXELS", help="side of the images (the preset's)")
    flags.add_argument("--batch", type=int, default=0, metavar="N", help="pairs per step (the preset's)")
    flags.add_argument("--turns", type=int, default=7, metavar="N", help="counted turns of each mode (7)")
    flags.add_argument("--steps", type=int, default=8, metavar="N", help="steps per turn (8)")
    flags.add_argument("--beside", type=int, default=0, metavar="K", help="prepare K variants beside a trial")
    flags.add_argument("--pairs", type=int, default=0, metavar="N", help="with --beside: pairs (the preset's)")
    flags.add_argument("--max-steps", type=int, default=0, metavar="N", help="with --beside: of a trial (the preset's)")
    flags.add_argument("--trials", type=int, default=1, metavar="N", help="with --beside: trials at once (1)")
    given = flags.parse_args(arguments)
    torch.set_num_threads(1)
    if given.beside:
        compare_beside(given)
        return
    print(f"{'CPU ms':20} degrading {'prepared':>9} {'online':>9} {'added':>8} {'turn by turn':>19} {'wall':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for method in given.methods:
            settings = benchmark_settings(given.preset, method, given.size, given.batch)
            print(row(settings, Path(folder), given.turns, given.steps), flush=True)


def compare_beside(given: argparse.Namespace) -> None:
    print(f"{'seconds of a trial':20} {'before':>9} {'beside':>9} {'added':>8} {'turn by turn':>19} {'preparing':>11}")
    with connected_for_preparation(cpus=max(2, given.trials)):
        for method in given.methods:
            settings = benchmark_settings(given.preset, method, given.size, given.batch)
            sample = preset(given.preset).trial
            changes = {
                "pairs.variants": given.beside,
                "pairs.train_pairs": given.pairs or sample.pairs.train_pairs,
                "training.max_steps": given.max_steps or sample.training.max_steps,
            }
            with tempfile.TemporaryDirectory() as folder:
                print(beside_row(override(settings, changes), Path(folder), given.turns, given.trials), flush=True)


if __name__ == "__main__":
    main()
