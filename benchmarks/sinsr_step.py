"""The time that prepared targets save in SinSR's training step, against the online step.

The online step encodes both images and runs the teacher's whole sampler every time, as the official code does. Both use
the product's own training loop, with equal network, batch, image size and optimiser. They take turns, step by step, so
that other load on the machine affects both equally.

    python -m benchmarks.sinsr_step --batch 4 --size 64
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from trainables.data.prepare import prepare
from trainables.methods.sinsr import SinSR
from trainables.networks.autoencoder import build_vq_f4, save_vq_f4
from trainables.pretrained.identity import resshift_identity
from trainables.pretrained.resshift import build_network, count_parameters
from trainables.pretrained.weights_file import save_weights
from trainables.settings import SHIPPED, TrialSettings, override
from trainables.settings.presets import PRESETS, preset
from trainables.training.loop import Trainer, World

MODES = ("online", "prepared")
WARM_UP = 2  # uncounted turns: allocations, threads, first read of the store


def benchmark_settings(name: str, batch: int, size: int, folder: Path) -> TrialSettings:
    """The preset at this batch and image size, on a few crops of the sample photographs, with random weights.

    A step takes as long with random weights as with trained ones, and random weights exist for every size.

    Args:
        batch, size: 0 for the preset's; `size` in pixels.
        folder: where the random weights are written.
    """
    trial = preset(name).trial
    batch, size = batch or trial.training.batch_size, size or trial.pairs.image_size
    latent = size // trial.autoencoder.factor
    scaled = [resolution * latent // trial.network.image_size for resolution in trial.network.attention_resolutions]
    changes: dict[str, object] = {
        "data.source": "sample",
        "pairs.image_size": size,
        "pairs.train_pairs": 2 * batch,
        "pairs.validation_pairs": 1,
        "network.image_size": latent,
        "network.attention_resolutions": tuple(scaled),  # attention stays at the same levels of the network
        "sinsr.draws": 1,
        "training.batch_size": batch,
        "teacher.weights": str(folder / "teacher.safetensors"),
    }
    if trial.autoencoder.weights != SHIPPED:
        changes["autoencoder.weights"] = str(folder / "autoencoder.safetensors")
        save_vq_f4(build_vq_f4(), folder / "autoencoder.safetensors")
    settings = override(trial, changes)
    state = build_network(settings.network).state_dict()
    save_weights(folder / "teacher.safetensors", state, "resshift", resshift_identity(settings))
    return settings


def make_trainers(settings: TrialSettings, store: Path, device: torch.device) -> dict[str, Trainer]:
    """One trainer per mode; they differ in nothing else."""
    prepared = prepare(settings, store, SinSR.columns(settings), device)
    return {
        mode: Trainer(override(settings, {"sinsr.teaching": mode}), prepared, ("val/psnr",), World(device=device))
        for mode in MODES
    }


class Taken(NamedTuple):
    """Seconds of one optimiser step: wall time, and CPU time, which other load on the machine changes less."""

    wall: float
    cpu: float


def measure(trainers: Mapping[str, Trainer], repetitions: int) -> dict[str, list[Taken]]:
    """Single optimiser steps by mode, each from loading the batch to updating the averaged weights."""
    steps: dict[str, list[Taken]] = {mode: [] for mode in trainers}
    for turn in range(WARM_UP + repetitions):
        for mode, trainer in trainers.items():
            cpu = time.process_time()
            wall = trainer.train_until(trainer.step + 1)  # ends with reading the losses, so a GPU has finished too
            if turn >= WARM_UP:
                steps[mode].append(Taken(wall, time.process_time() - cpu))
    return steps


def table(steps: Mapping[str, Sequence[Taken]]) -> str:
    """Milliseconds per step by mode, and how many prepared steps take as long as an online one."""
    lines = [f"{'ms a step':10} {'median':>9} {'fastest':>9} {'slowest':>9} {'CPU time':>9}"]
    medians = {}
    for mode, taken in steps.items():
        walls, medians[mode] = [step.wall for step in taken], Taken(*map(statistics.median, zip(*taken, strict=True)))
        shown = (medians[mode].wall, min(walls), max(walls), medians[mode].cpu)
        lines.append(f"{mode:10}" + "".join(f" {1000 * value:9.1f}" for value in shown))
    turns = [online.wall / prepared.wall for online, prepared in zip(*(steps[mode] for mode in MODES), strict=True)]
    ratio = Taken(*(online / prepared for online, prepared in zip(*(medians[mode] for mode in MODES), strict=True)))
    lines.append(f"online / prepared: {ratio.wall:.2f} by medians ({min(turns):.2f} to {max(turns):.2f} turn by turn)")
    return "\n".join([*lines, f"                   {ratio.cpu:.2f} by CPU time"])


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks.sinsr_step", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--preset", default="sample", choices=PRESETS, help="sizes of networks (sample)")
    flags.add_argument("--batch", type=int, default=0, metavar="N", help="pairs per step (the preset's)")
    flags.add_argument("--size", type=int, default=0, metavar="PIXELS", help="side of the images (the preset's)")
    flags.add_argument("--repetitions", type=int, default=15, metavar="N", help="counted steps of each mode (15)")
    flags.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads, a worker's share (1)")
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = flags.parse_args(arguments)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = benchmark_settings(given.preset, given.batch, given.size, Path(folder))
        trainers = make_trainers(settings, Path(folder) / "store", torch.device(given.device))
        steps = measure(trainers, given.repetitions)
    print(
        f"SinSR step, preset {given.preset}: batch {settings.training.batch_size}, {settings.pairs.image_size} px, "
        f"network of {count_parameters(settings.network) / 1e6:.2f} M, teacher of {settings.resshift.steps} steps, "
        f"{settings.training.precision}, {given.device}, {given.threads} thread(s), {given.repetitions} steps of each"
    )
    print(table(steps))


if __name__ == "__main__":
    main()
