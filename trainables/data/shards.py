"""Makes the shards of stages: photographs into pairs, pairs into latents, latents into what a network makes of them.

A shard is a function of its number, the settings and the files they name: the same bytes in whichever process, after
whichever others, beside however many. Only another kind of device or another build of torch may round differently.
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
from trainables.images.sources.photographs import Split
from trainables.settings import TrialSettings

_ROWS_AT_ONCE, _PIXELS_AT_ONCE = 32, 2**21  # through a network: of 512 px 8, whose activations fill gigabytes


@dataclass(frozen=True)
class Task:
    """Shard `number` of a split, in those of its stages whose stores are not whole, in order. `left`: those of which an
    earlier preparation has left a file, to be looked through before it is made again."""

    split: Split
    number: int
    stages: tuple[str, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What came of a task.

    Attributes:
        shards: of every stage. kept: those of them that were there already.
        error: why the others could not be made.
    """

    task: Task
    shards: Mapping[str, Shard] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    error: str = ""


class ShardMaker:
    """Makes shards and writes them to their stores. Loads each network when it is first needed, and keeps it.

    Args:
        stages: of all splits that tasks will name.
        pairs: split -> its pairs, for tasks that make some.
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

    def __call__(self, task: Task) -> Made:
        """Does a task; an `InputError` on the way is part of the result, for others to be told of."""
        files: dict[str, pa.Buffer] = {}
        shards: dict[str, Shard] = {}
        kept: list[str] = []
        error = ""
        try:
            with one_thread(), torch.no_grad():
                for name in task.stages:
                    stage = self._stages[task.split, name]
                    # What follows from a shard that had to be made anew may be of other rows.
                    left = self._left(stage, task) if len(kept) == len(files) else None
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
        """A shard that an earlier preparation has left, or one that goes on elsewhere; None where it is to be made."""
        file = shard_name(task.number)
        if stage.name not in task.left and not (stage.folder.remote and stage.folder.has(file)):
            return None
        content = stage.folder.read(file)
        try:
            decode_shard(content, stage.columns)
            return content, describe_shard(content)
        except (ValueError, LookupError):
            return None  # cut off by a full disk or a fallen machine

    def _make(self, stage: Stage, number: int, made: Mapping[str, pa.Buffer]) -> pa.Buffer:
        if stage.name == "pairs":
            return encode_pairs(stage, number, self._pairs[stage.split])
        before = self._shard(stage.split, "pairs", number, made)
        if stage.name != "latents":
            before |= self._shard(stage.split, "latents", number, made)
        make = self._maker(stage.name)
        at_once = max(1, min(_ROWS_AT_ONCE, _PIXELS_AT_ONCE // (before["target"].shape[-1] ** 2)))
        parts = [make(part, rows) for part, rows in _parts(before, number * stage.shard_rows, at_once)]
        values = (
            {name: np.concatenate([part[name] for part in parts]) for name in stage.columns}
            if parts
            else {name: np.empty((0, *column.shape), column.dtype) for name, column in stage.columns.items()}
        )
        try:
            return encode_shard(stage.columns, values)
        except ValueError as error:
            raise InputError(
                f"{stage.folder.name}: {error}; expected latents of about unit size, as autoencoders are used: check "
                "autoencoder.weights or base.weights, and teacher.weights"
            ) from None

    def _shard(self, split: Split, name: str, number: int, made: Mapping[str, pa.Buffer]) -> Values:
        """An earlier stage's shard: the one just made, or the one in its store."""
        stage = self._stages[split, name]
        file = made[name] if name in made else stage.folder.read(shard_name(number))
        try:
            return decode_shard(file, stage.columns)
        except (ValueError, LookupError) as error:
            raise InputError(
                f"{stage.folder.name}/{shard_name(number)}: damaged ({error}); delete {stage.folder.name} and it is "
                "prepared anew"
            ) from None

    def _maker(self, name: str) -> StageMaker:
        if name not in self._makers:
            self._makers[name] = MAKERS[name](self._settings, self.device)
        return self._makers[name]


def _parts(values: Values, first: int, at_once: int) -> Iterator[tuple[Values, range]]:
    """The rows of a shard a few at a time, with their numbers; the first of them has the number `first`."""
    count = len(next(iter(values.values())))
    for start in range(0, count, at_once):
        stop = min(start + at_once, count)
        yield {name: column[start:stop] for name, column in values.items()}, range(first + start, first + stop)


@contextmanager
def one_thread() -> Iterator[None]:
    """How sums are split among threads changes their rounding; and other processes use the other cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Runner = Callable[[ShardMaker, Sequence[Task]], Iterator[Made]]
"""Does tasks in any order, anywhere, and tells of each as it is done."""


def run_here(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
    """One task after another in this process."""
    return map(maker, tasks)
