"""Prepares the missing stages in one process or on a cluster, and opens the stores that a trial reads."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trainables.common.errors import InputError
from trainables.common.locks import locked
from trainables.common.paths import PARTIAL
from trainables.data.prepared import (
    Prepared,
    open_stores,
)
from trainables.data.shards import Runner, ShardMaker, Task, run_here
from trainables.data.stages.needed import needed_stages
from trainables.data.stages.stage import Stage
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.roots import local_root
from trainables.data.stores.shard_format import MANIFEST, Shard, encode_manifest, shard_numbers
from trainables.images.pairs import Pairs
from trainables.images.sources.catalogue import check_rejected
from trainables.images.sources.photographs import Photographs
from trainables.images.sources.source import Source, open_source
from trainables.settings import TrialSettings
from trainables.settings.pairs import Split

REJECTED = "rejected.parquet"
"""File next to the shards of pairs: photographs without pairs, and the reason. Columns `name` and `reason`."""
_REJECTED_SCHEMA = pa.schema([("name", pa.string()), ("reason", pa.string())])


class ProgressCallback(Protocol):
    """Called before the first shard and after every one.

    `stage`: the stages to make, such as "pairs + latents". `done` and `rows` count pairs, training and validation
    together.
    """

    def __call__(self, stage: str, done: int, rows: int) -> None: ...


def prepare(
    settings: TrialSettings,
    root: Path | str,
    columns: Collection[str],
    device: torch.device | str = "cpu",
    progress: ProgressCallback = lambda stage, done, rows: None,
    run: Runner = run_here,
    test: bool = False,
    source: Source | None = None,
) -> Prepared:
    """Makes the stores of `needed_stages` that are missing; returns all of them, on this machine's disk.

    Args:
        root: of the stores: a local folder, or a URI, from which they are copied to this machine once.
        columns: of a training batch, see `trainables.data.batches`.
        device: where networks run, in this process.
        run: makes the shards; see `trainables.data.ray_pipeline` for all cores and machines.
        test: whether to prepare test pairs too.
        source: `settings.data.source` if it is already open.

    Two callers on one machine do not make the same store twice: the second says so and waits. If a preparation is
    interrupted, finished shards are kept, and the next call resumes from them.

    Raises:
        InputError: photographs or weights that cannot be used, more photographs rejected than `data.max_rejected`
            allows, or a damaged store.
    """
    source = source or open_source(settings.data.source, settings.data.input)
    stages = needed_stages(settings, root, columns, source, test)
    make_stores(settings, stages, device, progress, run, source)
    return open_stores(settings, stages)


def make_stores(
    settings: TrialSettings,
    stages: Sequence[Stage],
    device: torch.device | str = "cpu",
    progress: ProgressCallback = lambda stage, done, rows: None,
    run: Runner = run_here,
    source: Source | None = None,
) -> None:
    """Makes the stores of `stages` that are missing, one variant of the training pairs after another; see `prepare`.

    Args:
        source: `settings.data.source` if it is already open.
    """
    for variant in sorted({stage.variant for stage in stages}):
        _make_stores(settings, [s for s in stages if s.variant == variant], device, progress, run, source)


def _make_stores(
    settings: TrialSettings,
    stages: Sequence[Stage],
    device: torch.device | str,
    progress: ProgressCallback,
    run: Runner,
    source: Source | None,
) -> None:
    if all(stage.exists for stage in stages):
        return
    with _locks([stage.folder for stage in stages]):
        missing = [stage for stage in stages if not stage.exists]
        if missing:
            _Preparation(settings, stages, missing, device, progress, source).run(run)


def read_photographs(
    settings: TrialSettings, stages: Sequence[Stage], cache: Path, source: Source | None = None
) -> dict[Split, Photographs]:
    """The photographs of every split that has a stage of pairs in `stages`.

    Args:
        cache: a folder that may keep the result of checking many images.
        source: `settings.data.source` if it is already open.

    Raises:
        InputError: images that cannot be used, see `Source.of_split`.
    """
    wanted = list(dict.fromkeys(stage.split for stage in stages if stage.name == "pairs"))
    if not wanted:
        return {}
    source = source or open_source(settings.data.source, settings.data.input)
    return {split: source.of_trial(settings, split, cache) for split in wanted}


def tested_photographs(settings: TrialSettings, source: Source, cache: Path) -> int:
    """The number of test photographs; 0 if the settings ask for none, or if the source is too small for a test split.

    Args:
        cache: a folder that may keep the result of checking many images.

    Raises:
        InputError: images that cannot be used, see `Source.of_split`.
    """
    return len(source.of_trial(settings, "test", cache)) if settings.pairs.test_pairs else 0


def pairs_of(settings: TrialSettings, photographs: Mapping[Split, Photographs], variant: int = 0) -> dict[Split, Pairs]:
    """The pairs of these photographs under a trial's settings.

    Raises:
        InputError: see `Pairs`.
    """
    seed = settings.data.seed
    return {split: Pairs(those, settings.pairs, split, seed, variant) for split, those in photographs.items()}


class _Preparation:
    """A preparation in progress, of stages of one variant."""

    def __init__(
        self,
        settings: TrialSettings,
        stages: Sequence[Stage],
        missing: Sequence[Stage],
        device: torch.device | str,
        progress: ProgressCallback,
        source: Source | None,
    ) -> None:
        self._settings, self._missing, self._progress = settings, missing, progress
        self._cache = local_root(missing[0].folder.root)
        self._pairs_of = {stage.split: stage.folder for stage in stages if stage.name == "pairs"}
        self._photographs = read_photographs(settings, missing, self._cache, source)
        self._rejected = {split: dict(those.rejected) for split, those in self._photographs.items()}
        self._shards: dict[StoreFolder, dict[int, Shard]] = {stage.folder: {} for stage in missing}
        self._maker = ShardMaker(settings, stages, pairs_of(settings, self._photographs, stages[0].variant), device)

    def run(self, run: Runner) -> None:
        stages = {(stage.split, stage.name): stage for stage in self._missing}
        rows_of = {stage.split: stage.rows_of for stage in self._missing}
        tasks = self._tasks()
        label = " + ".join(dict.fromkeys(name for task in tasks for name in task.stages))
        rows = sum(len(rows_of[task.split](task.number)) for task in tasks)
        done = sum(len(rows_of[task.split](task.number)) for task in tasks if task.left == task.stages)
        self._progress(label, done, rows)
        for made in run(self._maker, tasks):
            for name, shard in made.shards.items():
                self._shards[stages[made.task.split, name].folder][made.task.number] = shard
                self._reject(made.task.split, shard)
            if made.error:
                raise InputError(made.error)
            if made.task.left != made.task.stages:
                done += len(rows_of[made.task.split](made.task.number))
                self._progress(label, done, rows)
        for stage in self._missing:
            self._finish(stage)

    def _tasks(self) -> list[Task]:
        """One task per shard that is missing, with all its stages."""
        there = {stage.folder: set(shard_numbers(stage.folder.files())) for stage in self._missing}
        named: dict[tuple[Split, int], list[str]] = {}
        left: dict[tuple[Split, int], list[str]] = {}
        for stage in self._missing:
            for number in range(stage.shards):
                named.setdefault((stage.split, number), []).append(stage.name)
                if number in there[stage.folder]:
                    left.setdefault((stage.split, number), []).append(stage.name)
        return [Task(*place, tuple(names), tuple(left.get(place, ()))) for place, names in named.items()]

    def _reject(self, split: Split, shard: Shard) -> None:
        """Counts photographs found broken, and raises when they are too many."""
        if shard.rejected:
            self._rejected[split] |= shard.rejected
            data, found = self._settings.data, self._photographs[split].found
            check_rejected(data.source, split, self._rejected[split], found, data.max_rejected, self._cache)

    def _finish(self, stage: Stage) -> None:
        shards = [self._shards[stage.folder][number] for number in range(stage.shards)]
        if not any(shard.rows for shard in shards):
            raise InputError(f"data.source={self._settings.data.source}: none of its {stage.split} images gave a pair")
        made_from = ""
        if stage.name == "pairs":
            stage.folder.write(REJECTED, _rejected_table(self._rejected[stage.split]))
        else:
            made_from = hashlib.sha256(self._pairs_of[stage.split].read(MANIFEST)).hexdigest()
        if not stage.exists:  # by someone else's hand, in a bucket
            manifest = encode_manifest(stage.folder.name, stage.key, stage.columns, shards, made_from)
            stage.folder.write(MANIFEST, manifest)


def _rejected_table(rejected: Mapping[str, str]) -> pa.Buffer:
    names = sorted(rejected)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"name": names, "reason": [rejected[name] for name in names]}, _REJECTED_SCHEMA), sink)
    return sink.getvalue()


def _say_waiting(folder: StoreFolder) -> None:
    print(f"another process prepares {folder.local}; waiting for it", file=sys.stderr, flush=True)


@contextmanager
def _locks(folders: Sequence[StoreFolder]) -> Iterator[None]:
    """Holds this machine's locks of these stores, always taken in the same order, so that two callers cannot deadlock.

    Removes the temporary files of killed writers. Where there are no locks, two callers write the same bytes.
    """
    with ExitStack() as held:
        for folder in sorted(folders, key=lambda folder: folder.name):
            folder.local.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.local.with_name(f".{folder.name}.lock")
            alone = held.enter_context(locked(lock, partial(_say_waiting, folder)))
            for left in folder.local.glob(f".*{PARTIAL}") if alone else ():
                with suppress(OSError):  # of another user, or gone
                    left.unlink()
        yield


def bytes_to_come(stages: Sequence[Stage], window_shards: int = 0, readers: int = 1) -> int:
    """Bytes that stores will add to this machine's disk: shards to make, or to copy here.

    Args:
        window_shards: see `data.window_shards`.
        readers: number of concurrent trials; each has its own windows.
    """
    coming = 0
    for stage in stages:
        rows = stage.rows
        if stage.folder.remote:
            if (stage.folder.local / MANIFEST).exists():
                rows = 0
            elif window_shards and stage.split == "train":
                rows = min(rows, 2 * window_shards * stage.shard_rows * readers)
        elif stage.exists:
            rows = 0
        else:
            rows -= sum(len(stage.rows_of(number)) for number in shard_numbers(stage.folder.files()))
        coming += rows * stage.bytes_per_row
    return coming
