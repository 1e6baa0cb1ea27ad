"""The time that degrading anew in every epoch adds to a training step, against prepared pairs (`pairs.degraded`).

Both trainers run the product's own training loop on the same targets, with equal networks and optimisers, and take
turns. The online one degrades the pairs of later steps in a thread, and encodes them if the method reads latents.

    python -m benchmarks.fresh_pairs --methods pix2pix resshift latent_diffusion
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.latent_step import measure, medians
from trainables.data.estimate import degrading_seconds
from trainables.data.prepare import prepare
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.settings.presets import PRESETS, preset
from trainables.training.loop import Trainer, World

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
        f"{settings.method:20}{1000 * each:10.2f}{1000 * plain.cpu:10.1f}{1000 * fresh.cpu:10.1f}"
        f"{fresh.cpu / plain.cpu - 1:+9.1%}{f'{min(added):+.1%} to {max(added):+.1%}':>20}"
        f"{fresh.wall / plain.wall - 1:+14.1%}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks.fresh_pairs", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--preset", default="sample", choices=PRESETS, help="settings of trials (sample)")
    flags.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME", help=f"({' '.join(METHODS)})")
    flags.add_argument("--size", type=int, default=0, metavar="PIXELS", help="side of the images (the preset's)")
    flags.add_argument("--batch", type=int, default=0, metavar="N", help="pairs per step (the preset's)")
    flags.add_argument("--turns", type=int, default=7, metavar="N", help="counted turns of each mode (7)")
    flags.add_argument("--steps", type=int, default=8, metavar="N", help="steps per turn (8)")
    given = flags.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{'CPU ms':20}{'degrading':>10}{'prepared':>10}{'online':>10}{'added':>9}{'turn by turn':>20}{'wall':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for method in given.methods:
            settings = benchmark_settings(given.preset, method, given.size, given.batch)
            print(row(settings, Path(folder), given.turns, given.steps), flush=True)


if __name__ == "__main__":
    main()
