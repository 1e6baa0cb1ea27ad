"""The effect of the training loop's options for speed or memory on a step, method by method.

Time: trainers that differ in one option take turns in one process. Memory: each trainer runs in its own process;
measured is the largest use in two steps above that after its set-up, with larger images, so that activations dominate.

    python -m benchmarks.training_options --methods latent_diffusion pix2pix
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.latent_step import measure, medians
from benchmarks.sinsr_step import Taken
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override, reason_unread
from trainables.settings.presets import preset
from trainables.training.loop import Trainer, World

METHODS = ("latent_diffusion", "pixel_diffusion", "pix2pix", "ccsr")
OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "bf16": {"training.precision": "bf16"},
    "gradient_checkpointing": {"training.gradient_checkpointing": True},
    "channels_last": {"training.channels_last": True},
    "compile": {"training.compile": True},
}
MEMORY_STEPS = 2  # Adam's averages exist from the start of the second


def benchmark_settings(method: str, batch: int, size: int, perceptual: float | None) -> TrialSettings:
    """A method of the preset `sample`, on a few crops of its photographs with sides of `size` pixels.

    Args:
        perceptual: weight of that term; None for the preset's.
    """
    sample = preset("sample")
    changes: dict[str, object] = {
        **sample.methods[method],
        "method": method,
        "pairs.image_size": size,
        "pairs.train_pairs": 2 * batch,
        "pairs.validation_pairs": 1,
        "perceptual.every": 1,  # equal steps can be compared
        "training.batch_size": batch,
        **({} if perceptual is None else {"perceptual.weight": perceptual}),
    }
    return override(sample.trial, changes)


def options_of(settings: TrialSettings, asked: Sequence[str]) -> list[str]:
    """The default, with which the others are compared, and the requested options that the method reads."""
    read = [option for option in asked if not any(reason_unread(name, settings) for name in OPTIONS[option])]
    return list(dict.fromkeys(["default", *read]))


def make_trainers(
    settings: TrialSettings, options: Sequence[str], store: Path, device: torch.device
) -> tuple[dict[str, Trainer], dict[str, str]]:
    """A trainer for each option that survives its first step, and the error of each other option."""
    prepared = prepare(settings, store, method_class(settings.method).columns(settings), device)
    trainers, failures = {}, {}
    for option in options:
        trainer = Trainer(override(settings, OPTIONS[option]), prepared, ("val/psnr",), World(device=device))
        try:
            trainer.train_until(1)
        except Exception as error:  # mostly from the compiler
            failures[option] = next(iter(str(error).splitlines()), type(error).__name__)
        else:
            trainers[option] = trainer
    return trainers, failures


def peak_memory(settings: TrialSettings, prepared: Prepared, device: str, threads: int) -> int:
    """Largest memory in training above that after set-up, in bytes: of the process, or of the GPU.

    The peak of a process is Linux's `VmHWM`, reset after set-up: `ru_maxrss` would start from the parent's.
    """
    torch.set_num_threads(threads)
    trainer = Trainer(settings, prepared, ("val/psnr",), World(device=torch.device(device)))
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainer.train_until(MEMORY_STEPS)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_peak()
    trainer.train_until(MEMORY_STEPS)
    return _resident_peak() - before


def _resident_peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def peak_memories(
    settings: TrialSettings, options: Sequence[str], store: Path, device: str, threads: int
) -> dict[str, int]:
    """Bytes by option, each from a new process. Without compiled networks: the compiler works in the same process."""
    prepared = prepare(settings, store, method_class(settings.method).columns(settings), device)
    peaks = {}
    for option in options:
        if option != "compile":
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                changed = override(settings, OPTIONS[option])
                peaks[option] = process.submit(peak_memory, changed, prepared, device, threads).result()
    return peaks


def table(
    options: Sequence[str], times: Mapping[str, Taken], peaks: Mapping[str, int], failures: Mapping[str, str]
) -> str:
    """One row per option: median times of a step and peak memory, each with its ratio to the default's."""
    columns = ("CPU ms", "ratio", "wall ms", "ratio", "peak MB", "ratio")
    lines = [f"{'':24}" + "".join(f" {name:>8}" for name in columns)]
    for option in options:
        cells = ["-"] * len(columns)
        if option in times:
            taken, default = times[option], times["default"]
            cells[:2] = f"{1000 * taken.cpu:.1f}", f"{taken.cpu / default.cpu:.2f}"
            cells[2:4] = f"{1000 * taken.wall:.1f}", f"{taken.wall / default.wall:.2f}"
        if option in peaks:
            cells[4:] = f"{peaks[option] / 1e6:.0f}", f"{peaks[option] / peaks['default']:.2f}"
        lines.append(f"{option:24}" + "".join(f" {cell:>8}" for cell in cells))
    return "\n".join([*lines, *(f"{option} fails: {reason}" for option, reason in failures.items())])


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.training_options", description=(__doc__ or "").split("\n")[0]
    )
    flags.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="(all)")
    flags.add_argument("--options", nargs="+", choices=OPTIONS, default=tuple(OPTIONS), help="(all)")
    flags.add_argument("--batch", type=int, default=4, metavar="N", help="pairs per step (4)")
    flags.add_argument("--size", type=int, default=64, metavar="PIXELS", help="image sides, for time (64)")
    flags.add_argument("--memory-size", type=int, default=256, metavar="PIXELS", help="image sides, for memory (256)")
    flags.add_argument("--perceptual", type=float, metavar="WEIGHT", help="weight of that loss term (the preset's)")
    flags.add_argument("--turns", type=int, default=7, metavar="N", help="counted turns of each option (7)")
    flags.add_argument("--steps", type=int, default=4, metavar="N", help="steps per turn (4)")
    flags.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads, a worker's share (1)")
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = flags.parse_args(arguments)
    torch.set_num_threads(given.threads)
    for method in given.methods:
        settings = benchmark_settings(method, given.batch, given.size, given.perceptual)
        options = options_of(settings, given.options)
        with tempfile.TemporaryDirectory() as folder:
            trainers, failures = make_trainers(settings, options, Path(folder), torch.device(given.device))
            times = {option: medians(taken) for option, taken in measure(trainers, given.turns, given.steps).items()}
            del trainers
            larger = benchmark_settings(method, given.batch, given.memory_size, given.perceptual)
            peaks = peak_memories(
                larger, [o for o in options if o not in failures], Path(folder), given.device, given.threads
            )
        print(
            f"{method}, batch {given.batch}, {given.size} px (memory: {given.memory_size} px), perceptual weight "
            f"{settings.perceptual.weight}, {given.device}, {given.threads} thread(s), "
            f"{given.turns} turns of {given.steps} steps each"
        )
        print(table(options, times, peaks, failures), flush=True)


if __name__ == "__main__":
    main()
