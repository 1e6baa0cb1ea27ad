"""Makes what the stages lack, wherever there is room to work, and hands out what a trial reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock

from trainables.data.mirror import mirror, window_of
from trainables.data.pairs import Pairs
from trainables.data.roots import local_root
from trainables.data.shards import Runner, ShardMaker, Task, run_here
from trainables.data.shelf import mark_used
from trainables.data.sources.catalogue import check_rejected
from trainables.data.sources.photographs import Photographs, Split
from trainables.data.sources.source import load_source
from trainables.data.stages import STAGE_OF, Stage, plan
from trainables.data.store import MANIFEST, Shard, Store, decode_shard, describe_shard, encode_manifest, shard_name
from trainables.data.store_folder import PARTIAL, StoreFolder
from trainables.errors import InputError
from trainables.latents import latent_shape
from trainables.settings import TrialSettings

REJECTED = "rejected.parquet"
"""Beside the shards of pairs: which photographs gave none, and why. Columns `name` and `reason`."""
VERIFIED_AT_START = 2**30
"""Stores of up to so many bytes are compared with their hashes whenever a sweep starts; larger ones by size alone."""
_REJECTED_SCHEMA = pa.schema([("name", pa.string()), ("reason", pa.string())])
_VALIDATION_NOISE = 8  # stream, apart from those of the data seed


class Progress(Protocol):
    """Told before the first shard and after every one. `stage`: which there are to make, "pairs + latents". Rows are
    pairs, those of training and validation together."""

    def __call__(self, stage: str, done: int, rows: int) -> None: ...


def validation_noise(row: int, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The standard normal noise that validation pair `row` is restored with, float32; equal for all trials."""
    stream = [_VALIDATION_NOISE, row] + ([draw] if draw else [])
    return np.random.default_rng(stream).standard_normal(tuple(shape), np.float32)


@dataclass
class Prepared:
    """The stores a trial reads. Opens them on first use, so that it travels between processes as paths.

    Attributes:
        train_stores, validation_stores: stage -> folder.
        train_noise, validation_noise: (C, H, W) of the noise for one pair: of a latent, or of an image.
        sources: folder -> where its shards come from when they are read, for stores that are not here as a whole.
        keep: how many shards of such a store are kept here at a time.
    """

    train_stores: Mapping[str, str]
    validation_stores: Mapping[str, str]
    train_noise: tuple[int, int, int]
    validation_noise: tuple[int, int, int]
    sources: Mapping[str, StoreFolder] = field(default_factory=dict)
    keep: int = 0
    _open: dict[str, Store] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def train(self, column: str) -> Store:
        return self._store(self.train_stores[STAGE_OF[column]])

    def validation(self, column: str) -> Store:
        return self._store(self.validation_stores[STAGE_OF[column]])

    @property
    def train_rows(self) -> int:
        return len(self._store(self.train_stores["pairs"]))

    @property
    def validation_rows(self) -> int:
        return len(self._store(self.validation_stores["pairs"]))

    @property
    def validation_names(self) -> list[str]:
        return self._store(self.validation_stores["pairs"]).names

    def _store(self, path: str) -> Store:
        if path not in self._open:
            self._open[path] = Store(path, source=self.sources.get(path), keep=self.keep)
        return self._open[path]


def prepare(
    settings: TrialSettings,
    root: Path | str,
    columns: Collection[str],
    device: torch.device | str = "cpu",
    progress: Progress = lambda stage, done, rows: None,
    run: Runner = run_here,
) -> Prepared:
    """Makes what `plan` lists and is not there yet; returns all of it, on this machine's disk.

    Args:
        root: of the stores: a local folder, or a URI, from which they are mirrored to this machine once.
        columns: of a training batch, see `trainables.data.batches`.
        device: where networks run, in this process.
        run: who makes the shards; see `trainables.data.pipeline` for all cores and machines.

    Two callers on one machine do not make the same store twice: the second waits for the first. Whatever ends a
    preparation early, the shards that are made stay, and the next one goes on from them.

    Raises:
        InputError: photographs or weights that cannot be used, more photographs rejected than `data.max_rejected`
            allows, or a damaged store.
    """
    stages = plan(settings, root, columns)
    if not all(stage.exists for stage in stages):
        with _locks([stage.folder for stage in stages]):
            missing = [stage for stage in stages if not stage.exists]
            if missing:
                _Preparation(settings, stages, missing, device, progress).run(run)
    return _opened(settings, stages)


def read_photographs(settings: TrialSettings, stages: Sequence[Stage], cache: Path) -> dict[Split, Photographs]:
    """The photographs of every split whose pairs are among `stages`.

    Args:
        cache: a folder, where it may be noted what was found among many images.

    Raises:
        InputError: images that cannot be used, see `load_source`.
    """
    data, pairs = settings.data, settings.pairs
    sizes: dict[Split, int] = {"train": pairs.image_size, "validation": pairs.validation_size}
    return {
        split: load_source(data.source, split, size, pairs.scale, data.max_rejected, cache)
        for split, size in sizes.items()
        if any((stage.name, stage.split) == ("pairs", split) for stage in stages)
    }


def pairs_of(settings: TrialSettings, photographs: Mapping[Split, Photographs]) -> dict[Split, Pairs]:
    """The pairs that a trial's settings make of them.

    Raises:
        InputError: see `Pairs`.
    """
    return {split: Pairs(those, settings.pairs, split, settings.data.seed) for split, those in photographs.items()}


class _Preparation:
    """Stores in the making."""

    def __init__(
        self,
        settings: TrialSettings,
        stages: Sequence[Stage],
        missing: Sequence[Stage],
        device: torch.device | str,
        progress: Progress,
    ) -> None:
        self._settings, self._missing, self._progress = settings, missing, progress
        self._cache = local_root(missing[0].folder.root)
        self._photographs = read_photographs(settings, missing, self._cache)
        self._rejected = {split: dict(those.rejected) for split, those in self._photographs.items()}
        self._shards = {stage.folder: _made_before(stage) for stage in missing}
        self._maker = ShardMaker(settings, stages, pairs_of(settings, self._photographs), device)

    def run(self, run: Runner) -> None:
        stages = {(stage.split, stage.name): stage for stage in self._missing}
        for stage in self._missing:
            for shard in self._shards[stage.folder].values():
                self._reject(stage.split, shard)
        tasks = self._tasks()
        label = " + ".join(dict.fromkeys(name for task in tasks for name in task.stages)) or "nothing"
        sizes = {stage.split: stage for stage in self._missing}
        rows = sum(stage.rows for stage in sizes.values())
        done = rows - sum(len(sizes[task.split].rows_of(task.number)) for task in tasks)
        self._progress(label, done, rows)
        for made in run(self._maker, tasks):
            for name, shard in made.shards.items():
                self._shards[stages[made.task.split, name].folder][made.task.number] = shard
                self._reject(made.task.split, shard)
            if made.error:
                raise InputError(made.error)
            done += len(sizes[made.task.split].rows_of(made.task.number))
            self._progress(label, done, rows)
        for stage in self._missing:
            self._finish(stage)

    def _tasks(self) -> list[Task]:
        """What is lacking, shard by shard, each with all of its stages."""
        lacking: dict[tuple[Split, int], list[str]] = {}
        for stage in self._missing:
            for number in range(stage.shards):
                if number not in self._shards[stage.folder]:
                    lacking.setdefault((stage.split, number), []).append(stage.name)
        return [Task(split, number, tuple(names)) for (split, number), names in lacking.items()]

    def _reject(self, split: Split, shard: Shard) -> None:
        """Counts photographs that turned out broken, and stops when they are too many."""
        if shard.rejected:
            self._rejected[split] |= shard.rejected
            data, found = self._settings.data, self._photographs[split].found
            check_rejected(data.source, split, self._rejected[split], found, data.max_rejected, self._cache)

    def _finish(self, stage: Stage) -> None:
        shards = [self._shards[stage.folder][number] for number in range(stage.shards)]
        if not any(shard.rows for shard in shards):
            raise InputError(f"data.source={self._settings.data.source}: none of its {stage.split} images gave a pair")
        if stage.name == "pairs":
            stage.folder.write(REJECTED, _rejected_table(self._rejected[stage.split]))
        stage.folder.write(MANIFEST, encode_manifest(stage.folder.name, stage.key, stage.columns, shards))


def _made_before(stage: Stage) -> dict[int, Shard]:
    """The shards that a preparation which was cut off has left, looked through."""
    shards: dict[int, Shard] = {}
    there = stage.folder.files()
    for number in range(stage.shards):
        if shard_name(number) in there:
            file = stage.folder.read(shard_name(number))
            try:
                decode_shard(file, stage.columns)
                shards[number] = describe_shard(file)
            except (ValueError, LookupError):
                continue  # cut off by a full disk or a fallen machine: made anew
    return shards


def _rejected_table(rejected: Mapping[str, str]) -> pa.Buffer:
    names = sorted(rejected)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"name": names, "reason": [rejected[name] for name in names]}, _REJECTED_SCHEMA), sink)
    return sink.getvalue()


@contextmanager
def _locks(folders: Sequence[StoreFolder]) -> Iterator[None]:
    """Holds this machine's locks of those stores; always taken in one order, so that two callers cannot block each
    other. Clears what killed writers left under temporary names."""
    with ExitStack() as held:
        for folder in sorted(folders, key=lambda folder: folder.name):
            folder.local.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder.local.with_name(f".{folder.name}.lock")))
            for left in folder.local.glob(f".*{PARTIAL}"):
                left.unlink(missing_ok=True)
        yield


def _opened(settings: TrialSettings, stages: Sequence[Stage]) -> Prepared:
    """The stores, all there, as this machine reads them."""
    window = settings.data.window_shards
    paths: dict[tuple[Split, str], str] = {}
    sources = {}
    for stage in stages:
        folder, place = stage.folder, stage.folder.local
        if folder.remote and window and stage.split == "train" and not (place / MANIFEST).exists():
            place = window_of(folder)
            sources[str(place)] = folder
        else:
            if folder.remote:
                mirror(folder)
            Store(place, verify=settings.data.verify and stage.bytes <= VERIFIED_AT_START)
        mark_used(place)
        paths[stage.split, stage.name] = str(place)
    shape = latent_shape(settings)
    return Prepared(
        {name: path for (split, name), path in paths.items() if split == "train"},
        {name: path for (split, name), path in paths.items() if split == "validation"},
        shape.of(settings.pairs.image_size),
        shape.of(settings.pairs.validation_size),
        sources,
        2 * window,  # the present window and the next
    )
