"""Makes the shards of stages: pairs from photographs, latents from pairs, network outputs from latents.

A shard depends only on its number, the settings and the files they name. It has the same bytes in any process and any
order. Only another kind of device or another build of torch may round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from trainables.common.errors import InputError
from trainables.data.stages.kinds import MAKERS
from trainables.data.stages.pairs import encode_pairs
from trainables.data.stages.stage import Stage, StageMaker, Values
from trainables.data.stores.shard_format import Shard, decode_shard, describe_shard, encode_shard, shard_name
from trainables.images.pairs import Pairs
from trainables.images.tensors import rows_at_once
from trainables.settings import TrialSettings
from trainables.settings.pairs import Split

_ROWS_AT_ONCE = 32  # of a network's batch, at most


@dataclass(frozen=True)
class Task:
    """One shard to make.

    Attributes:
        number: of the shard, in its split.
        stages: those whose stores are unfinished, in order.
        left: those with a file from an earlier preparation, which is checked before it is made again.
    """

    split: Split
    number: int
    stages: tuple[str, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """The result of a task.

    Attributes:
        shards: of every stage.
        kept: stages whose shards existed already.
        error: why the others could not be made.
    """

    task: Task
    shards: Mapping[str, Shard] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    error: str = ""

    @property
    def made_again(self) -> bool:
        """Whether a stage was made now: what is left of later ones may belong to other rows."""
        return len(self.kept) < len(self.shards)


class ShardMaker:
    """Makes shards and writes them to their stores. Loads each network at its first use, and keeps it.

    Args:
        stages: of all splits of the tasks, of one variant.
        pairs: split -> its pairs, for tasks that make pairs.
    """

    def __init__(
        self,
        settings: TrialSettings,
        stages: Sequence[Stage],
        pairs: Mapping[Split, Pairs],
        device: torch.device | str = "cpu",
    ) -> None:
        self._settings, self._pairs, self.device = settings, pairs, torch.device(device)
        self._stages = {(stage.split, stage.name): stage for stage in stages}
        self._makers: dict[str, StageMaker] = {}

    @property
    def root(self) -> str:
        """Of the stores, which is the same for all stages: a local path, or a URI."""
        return next(iter(self._stages.values())).folder.root

    def __call__(self, task: Task, made_again: bool = False) -> Made:
        """Does a task; an `InputError` is returned in the result, so that it reaches the other processes.

        Args:
            made_again: whether another process has made an earlier stage of this shard anew.
        """
        files: dict[str, pa.Buffer] = {}
        shards: dict[str, Shard] = {}
        kept: list[str] = []
        error = ""
        try:
            with one_thread(), torch.no_grad():
                for name in task.stages:
                    stage = self._stages[task.split, name]
                    # Later stages of a shard that was made again may belong to other rows.
                    left = self._left(stage, task) if len(kept) == len(files) and not made_again else None
                    if left is not None:
                        files[name], shards[name] = left
                        kept.append(name)
                    else:
                        files[name] = self._make(stage, task.number, files)
                        stage.folder.write(shard_name(task.number), files[name])
                        shards[name] = describe_shard(files[name])
        except InputError as refused:
            error = str(refused)
        return Made(task, shards, tuple(kept), error)

    def _left(self, stage: Stage, task: Task) -> tuple[pa.Buffer, Shard] | None:
        """A shard from an earlier preparation, or from another one in the same bucket; None if it has to be made."""
        file = shard_name(task.number)
        if stage.name not in task.left and not (stage.folder.remote and stage.folder.has(file)):
            return None
        content = stage.folder.read(file)
        try:
            decode_shard(content, stage.columns)
            return content, describe_shard(content)
        except (ValueError, LookupError):
            return None  # truncated by a full disk or a crash

    def _make(self, stage: Stage, number: int, made: Mapping[str, pa.Buffer]) -> pa.Buffer:
        if stage.name == "pairs":
            return encode_pairs(stage, number, self._pairs[stage.split])
        before = self._shard(stage.split, "pairs", number, made)
        if stage.name != "latents":
            before |= self._shard(stage.split, "latents", number, made)
        make = self._maker(stage.name)
        at_once = min(_ROWS_AT_ONCE, rows_at_once(before["target"].shape[-1]))
        first = stage.variant * stage.rows + number * stage.shard_rows
        parts = [make(part, rows) for part, rows in _parts(before, first, at_once)]
        values = (
            {name: np.concatenate([part[name] for part in parts]) for name in stage.columns}
            if parts
            else {name: np.empty((0, *column.shape), column.dtype) for name, column in stage.columns.items()}
        )
        try:
            return encode_shard(stage.columns, values)
        except ValueError as error:
            raise InputError(
                f"{stage.folder.name}: {error}; expected latents of about unit variance: check "
                "autoencoder.weights or base.weights, and teacher.weights"
            ) from None

    def _shard(self, split: Split, name: str, number: int, made: Mapping[str, pa.Buffer]) -> Values:
        """An earlier stage's shard: just made, or read from its store."""
        stage = self._stages[split, name]
        file = made[name] if name in made else stage.folder.read(shard_name(number))
        try:
            return decode_shard(file, stage.columns)
        except (ValueError, LookupError) as error:
            raise InputError(
                f"{stage.folder.name}/{shard_name(number)}: damaged ({error}); delete {stage.folder.name} to prepare "
                "it again"
            ) from None

    def _maker(self, name: str) -> StageMaker:
        if name not in self._makers:
            self._makers[name] = MAKERS[name](self._settings, self.device)
        return self._makers[name]


def _parts(values: Values, first: int, at_once: int) -> Iterator[tuple[Values, range]]:
    """The rows of a shard in parts, with their numbers; `first` is the number of the shard's first row."""
    count = len(next(iter(values.values())))
    for start in range(0, count, at_once):
        stop = min(start + at_once, count)
        yield {name: column[start:stop] for name, column in values.items()}, range(first + start, first + stop)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: the number of threads changes rounding, and other processes use the other cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Runner = Callable[[ShardMaker, Sequence[Task]], Iterator[Made]]
"""Does tasks in any order and any process; yields each result when it is done."""


def run_here(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
    """One task after another in this process."""
    return map(maker, tasks)
