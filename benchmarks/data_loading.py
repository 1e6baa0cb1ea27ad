"""Time to load training batches: from a prepared store, made online, and from plain .npy files.

Three comparisons for the batches of a SinSR trial:

- online: a `DataLoader` with two workers decodes, crops and degrades JPEG files of the sample's photographs, and
  encodes them with the shipped autoencoder. The teacher is left out; an online SinSR step would need it too.
- memmap: the same rows in the same order from one `.npy` file per column, indexed and converted step by step.
- memory: PSS of two processes that read one store to the end, against that of one.

Rows of the stores are random numbers in the shapes of real stores.

    python -m benchmarks.data_loading
    python -m benchmarks.data_loading --sizes 64 --batches 4 --online 0 --memory 0
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.sinsr_step import Taken
from trainables.data.batches import TrainingBatches
from trainables.data.prepared import Prepared
from trainables.data.stages.kinds import DRAWN, STAGE_OF
from trainables.data.stages.needed import needed_stages
from trainables.data.stages.stage import Stage
from trainables.data.stores.shard_format import MANIFEST, describe_shard, encode_manifest, encode_shard, shard_name
from trainables.images.pairs import Pairs
from trainables.images.sources.decode import read_pixels
from trainables.images.sources.photographs import Photograph
from trainables.images.sources.source import open_source
from trainables.images.tensors import image_tensor, to_tensor, upsample
from trainables.methods.sinsr import SinSR
from trainables.pretrained.autoencoders import Autoencoder, load_latents
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset

CPU = torch.device("cpu")
WORKERS = 2


def benchmark_settings(size: int, batch: int, rows: int, steps: int) -> TrialSettings:
    """The preset `sample` with this many pairs of `size` pixels."""
    trial = preset("sample").trial
    changes = {
        "pairs.image_size": size,
        "pairs.train_pairs": rows,
        "network.image_size": size // trial.autoencoder.factor,
        "network.attention_resolutions": (size // trial.autoencoder.factor // 2,),
        "training.max_steps": steps,
        "training.batch_size": batch,
    }
    return override(trial, changes)


def make_stores(settings: TrialSettings, root: Path) -> list[Stage]:
    """The training stores of a SinSR trial, filled with random numbers."""
    rng = np.random.default_rng(0)
    stages = [stage for stage in needed_stages(settings, root, SinSR.columns(settings)) if stage.split == "train"]
    for stage in stages:
        shards = []
        for number in range(stage.shards):
            size = len(stage.rows_of(number))
            # Random bytes are drawn fastest; latents then are whole numbers.
            values = {name: rng.integers(0, 256, (size, *c.shape), np.uint8) for name, c in stage.columns.items()}
            file = encode_shard(stage.columns, values)
            stage.folder.write(shard_name(number), file)
            shards.append(describe_shard(file))
        stage.folder.write(MANIFEST, encode_manifest(stage.folder.name, stage.key, stage.columns, shards))
    return stages


def opened(stages: Sequence[Stage]) -> Prepared:
    latent = next(stage.columns["latent"].shape for stage in stages if stage.name == "latents")
    channels, height, width = latent
    noise = (channels, height, width)
    return Prepared({stage.name: str(stage.folder.local) for stage in stages}, {}, noise, noise)


class PlainBatches:
    """The batches of `TrainingBatches`, read from one .npy file per column."""

    def __init__(self, prepared: Prepared, settings: TrialSettings, folder: Path) -> None:
        self.settings, self.rows, self.columns = settings, prepared.train_rows, {}
        for name in sorted(SinSR.columns(settings)):
            np.save(folder / f"{name}.npy", prepared.train(name)[name])
            self.columns[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
        # Used only for the order of the rows.
        self.order = TrainingBatches(prepared, settings, (), CPU)._order

    def __call__(self, step: int) -> dict[str, Tensor]:
        size, draws = self.settings.training.batch_size, self.settings.sinsr.draws
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), self.rows)
        rows = np.concatenate([self.order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        which = (epochs + rows) % draws
        return {
            name: to_tensor(column[rows, which] if name in DRAWN else column[rows], CPU)
            for name, column in self.columns.items()
        }


Reader = Callable[[int], dict[str, Tensor]]
"""A step -> its batch."""


def measure_readers(readers: Mapping[str, Reader], steps: int, turns: int) -> dict[str, list[Taken]]:
    """Seconds per step by reader and turn; CPU time is that of all threads. Each turn continues where the last one
    ended.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in readers}
    for turn in range(turns + 1):  # the first turn reads the files into memory
        for name, batches in readers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for step in range(turn * steps, (turn + 1) * steps):
                batches(step)
            if turn:
                taken[name].append(Taken((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps))
    return taken


class OnlinePairs(Dataset[dict[str, Tensor]]):
    """Pairs made from files on access."""

    def __init__(self, files: Sequence[Path], settings: TrialSettings) -> None:
        self.files, self.settings = files, settings

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        return load_latents(self.settings)

    def __len__(self) -> int:
        return self.settings.pairs.train_pairs

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        file = self.files[row % len(self.files)]
        photograph = Photograph(file.name, read_pixels(file.read_bytes()))
        pair = Pairs([photograph], self.settings.pairs, "train", self.settings.data.seed)[row]
        target, degraded = (image_tensor(image, CPU) for image in (pair.target, pair.degraded))
        with torch.no_grad():
            return {
                "degraded": degraded[0],
                "latent": self._autoencoder.encode(target)[0],
                "latent_degraded": self._autoencoder.encode(upsample(degraded, self.settings.pairs.scale))[0],
            }


def online_rate(settings: TrialSettings, folder: Path, pairs: int) -> float:
    """Pairs per second of a `DataLoader` from its second batch on; batches that its workers prepared before count in
    its favour.
    """
    files = []
    for photograph in open_source("sample").of_split("train", settings.pairs.image_size, settings.pairs.scale):
        files.append(folder / f"{photograph.name}.jpg")
        Image.fromarray(photograph.pixels).save(files[-1], quality=95)
    size = settings.training.batch_size
    few = override(settings, {"pairs.train_pairs": pairs + size})
    loader = DataLoader(OnlinePairs(files, few), size, num_workers=WORKERS, multiprocessing_context="spawn")
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    made = sum(len(batch["latent"]) for batch in batches)
    return made / (time.perf_counter() - started)


@dataclasses.dataclass(frozen=True)
class Footprint:
    """PSS of processes, in bytes: of the store's mapped files, and of everything else."""

    mapped: int
    rest: int


def footprint(pids: Sequence[int], root: Path) -> Footprint:
    """Reads /proc, so Linux only."""
    mapped = total = 0
    for pid in pids:
        ours = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            first = line.split(maxsplit=1)[0]
            if not first.endswith(":"):  # the head of a mapping: addresses, permissions, ..., file
                ours = str(root) in line
            elif first == "Pss:" and ours:
                mapped += 1024 * int(line.split()[1])
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(1024 * int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return Footprint(mapped, total - mapped)


def _read_to_the_end(prepared: Prepared, settings: TrialSettings, done: Connection) -> None:
    """Reads all columns with all their draws, as a trial does; keeps them until it may end."""
    torch.set_num_threads(1)
    batches = TrainingBatches(prepared, settings, STAGE_OF.keys() - {"restored"}, CPU)
    for step in range(settings.training.max_steps):
        batches(step)
    done.send(None)
    done.recv()


def memory_report(root: Path, gigabytes: float) -> str:
    """PSS of one process that has read a store of this size, and of two."""
    size, batch = 256, 16
    one = benchmark_settings(size, batch, 16, 1)
    row = sum(s.bytes_per_row for s in needed_stages(one, root, SinSR.columns(one)) if s.split == "train")
    rows = max(batch, int(gigabytes * 1e9 / row) // batch * batch)
    settings = benchmark_settings(size, batch, rows, one.sinsr.draws * rows // batch)
    stages = make_stores(settings, root)
    prepared, context = opened(stages), multiprocessing.get_context("spawn")
    pids, ends, measured = [], [], []
    for _ in range(2):
        end, other = context.Pipe()
        process = context.Process(target=_read_to_the_end, args=(prepared, settings, other), daemon=True)
        process.start()
        end.recv()
        pids.append(process.pid or 0)
        ends.append((end, process))
        measured.append(footprint(pids, root))
    for end, process in ends:
        end.send(None)
        process.join()
    alone, both = measured
    lines = [f"{'PSS, MB':16} {'mapped':>9} {'the rest':>9} {'total':>9}"]
    for name, used in (("one process", alone), ("two together", both)):
        total = used.mapped + used.rest
        lines.append(f"{name:16} {used.mapped / 1e6:9.0f} {used.rest / 1e6:9.0f} {total / 1e6:9.0f}")
    ratio = (both.mapped + both.rest) / (alone.mapped + alone.rest)
    stored = sum(stage.bytes for stage in stages)
    return "\n".join([f"a store of {stored / 1e9:.2f} GB, read to the end", *lines, f"two / one: {ratio:.3f}"])


def row(size: int, batch: int, steps: int, turns: int, online: int, stored: float) -> str:
    """A line of the table: pairs per second of each reader, and the ratios to the prepared store, of at most `stored`
    GB.
    """
    rows = max(batch, min(20_000, int(stored * 1e9) // (7 * size * size)))
    settings = benchmark_settings(size, batch, rows, (turns + 1) * steps)
    with tempfile.TemporaryDirectory() as folder:
        prepared = opened(make_stores(settings, Path(folder)))
        readers: dict[str, Reader] = {
            "prepared": TrainingBatches(prepared, settings, SinSR.columns(settings), CPU),
            "memmap": PlainBatches(prepared, settings, Path(folder)),
        }
        for name, values in readers["prepared"](0).items():
            assert torch.equal(values, readers["memmap"](0)[name])
        taken = measure_readers(readers, steps, turns)
        made = online_rate(settings, Path(folder), online) if online else 0.0
    ratios = sorted(m.cpu / p.cpu for p, m in zip(taken["prepared"], taken["memmap"], strict=True))
    clock = statistics.median(m.wall / p.wall for p, m in zip(taken["prepared"], taken["memmap"], strict=True))
    rate, plain = (batch / statistics.median(one.wall for one in taken[name]) for name in ("prepared", "memmap"))
    against_online = f"{made:9.1f} {rate / made:7.0f}" if online else f"{'-':>9} {'-':>7}"
    return (
        f"{size:4} px, batch {batch:2} {rate:11.0f} {plain:9.0f} {statistics.median(ratios):7.2f}"
        f" {f'{ratios[0]:.2f} to {ratios[-1]:.2f}':>15} {clock:12.2f} {against_online}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.data_loading", description=(__doc__ or "").split("\n")[0]
    )
    flags.add_argument("--sizes", type=int, nargs="*", default=[64, 256], metavar="PIXELS", help="image sides (64 256)")
    flags.add_argument("--batches", type=int, nargs="+", default=[4, 16], metavar="N", help="pairs per step (4 16)")
    flags.add_argument("--steps", type=int, default=1000, metavar="N", help="steps per turn (1000)")
    flags.add_argument("--turns", type=int, default=5, metavar="N", help="counted turns of each reader (5)")
    flags.add_argument("--online", type=int, default=64, metavar="PAIRS", help="pairs to make online; 0 for none (64)")
    flags.add_argument("--stored", type=float, default=1.0, metavar="GB", help="largest store of the readers (1)")
    flags.add_argument("--memory", type=float, default=4.0, metavar="GB", help="size of its store; 0 for none (4)")
    given = flags.parse_args(arguments)
    torch.set_num_threads(1)
    if given.sizes:
        print(f"columns of SinSR, to float tensors on the CPU; {given.turns} turns of {given.steps} steps each")
        head = f"{'pairs a second':18} {'prepared':>9} {'.npy':>9} {'ratio':>7} {'turn by turn':>15} by the clock"
        print(f"{head} {'online':>9} {'ratio':>7}")
    for size, batch in itertools.product(given.sizes, given.batches):
        print(row(size, batch, given.steps, given.turns, given.online, given.stored), flush=True)
    if given.memory:
        with tempfile.TemporaryDirectory() as folder:
            print(memory_report(Path(folder), given.memory))


if __name__ == "__main__":
    main()
