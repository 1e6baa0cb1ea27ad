"""Batches from prepared stores. A batch depends only on (seed, step), so restarts and world size do not change it.

Columns of a training batch, each (B, ...) float32:

| name | content |
|---|---|
| `target`, `degraded` | images in [-1, 1], (3, S, S) and (3, S/scale, S/scale) |
| `latent`, `latent_degraded` | unquantised autoencoder latents of the target and of the upsampled degraded image |
| `noise`, `taught` | one normal noise draw of the pair, and the teacher's deterministic x_0 from it |
| `restored` | the latent that the finished first stage restores from one noise draw |
| `fresh_noise` | normal noise of the shape of a latent or an image, new every step |
| `jump_noise` | a second draw of the same kind as `fresh_noise`, independent of it |
| `coarse_noise` | normal noise of coarser grids, enlarged, (levels, C, h, w); see `trainables.diffusion.noise` |
| `uniform`, `second_uniform` | two independent numbers in [0, 1), new every step |
| `prompt_uniform` | a third one, for dropping prompts |

With `pairs.degraded=online` a batch has images in place of latents that are encoded in the step, and `degraded` is made
when it is read.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from trainables.common.errors import InputError
from trainables.common.units import duration
from trainables.data.augmentation import Augmentation
from trainables.data.fresh_pairs import STEPS_AHEAD, degrade_all
from trainables.data.prepared import Prepared, validation_noise
from trainables.data.stages.kinds import DRAWN, STAGE_OF
from trainables.data.stages.pairs import pairs_columns
from trainables.data.stores.shard_format import Column
from trainables.diffusion.noise import coarse_levels
from trainables.images.tensors import to_float, to_tensor
from trainables.methods.shared.encoding import UNDAMAGED, batch_columns, degrades_online
from trainables.settings import TrialSettings

_ORDER, _SHARDS = 11, 12  # random streams of the seed, different from those of the pairs
UNIFORM = {"uniform": 19, "second_uniform": 29, "prompt_uniform": 41}
"""Columns of uniform numbers, and the random stream of each."""
_STREAM_OF = UNIFORM | {"fresh_noise": 13, "jump_noise": 17, "coarse_noise": 23}
_CHUNK_STEPS, _CHUNK_BYTES = 1024, 32 * 2**20  # at most, of a chunk that has several steps
_CHUNKS_AN_EPOCH = 8  # at least, with several variants of the pairs
_WAIT_SECONDS = 0.5  # between two looks for a variant that is being prepared

Chunk = dict[str, Tensor]


def chunk_steps(batch_bytes: int, settings: TrialSettings) -> int:
    """How many steps are read at once, if the stored columns of one worker's batch have so many bytes."""
    most = STEPS_AHEAD if degrades_online(settings) else _CHUNK_STEPS
    pairs = settings.pairs
    if pairs.variants > 1:  # a chunk in two epochs waits for the second one's variant, which may not be prepared yet
        most = max(1, pairs.train_pairs // settings.training.batch_size // _CHUNKS_AN_EPOCH)
    return max(1, min(most, _CHUNK_BYTES // max(1, batch_bytes), settings.training.max_steps))


def of_one_draw(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Stored columns as a batch has them: of several prepared draws, it has one."""
    return {name: Column(c.dtype, c.shape[1:]) if name in DRAWN else c for name, c in columns.items()}


class TrainingBatches:
    """Training batches of one worker.

    Rows are read in chunks of many steps, in the order in which they are stored on disk, so that many rows share
    Python's cost of opening a shard. A thread reads the next chunk while the present one is used; it ends with this
    object.

    Epoch e reads variant e mod `pairs.variants` of the training pairs. If it is not prepared yet, the trial waits for
    it and says so; it never reads another one.

    Columns that are not stored are drawn on the device for the whole batch of all workers, and do not depend on which
    other columns are drawn. A CPU and a GPU draw different numbers.

    Args:
        columns: the columns that the method reads, from the table above.
        rank, world: this worker's share. The rows of a batch and their order do not depend on `world`.

    Raises:
        InputError: the batch cannot be divided evenly among workers and accumulated parts; when called, a store cannot
            be read.
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: TrialSettings,
        columns: Collection[str],
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        batch_size, parts = settings.training.batch_size, settings.training.accumulate * settings.training.updates
        if batch_size % (world * parts):
            raise InputError(
                f"training.batch_size={batch_size}: expected a multiple of {world * parts}, "
                f"{world} workers x {parts} parts (training.accumulate x training.updates)"
            )
        self._prepared, self._training, self._device = prepared, settings.training, device
        self._window, self._variants = settings.data.window_shards, settings.pairs.variants
        self._settings, self._columns_read = settings, batch_columns(settings, columns)
        held = STAGE_OF.keys() & Augmentation.columns(settings, self._columns_read)
        self._online = degrades_online(settings) and "degraded" in held
        self._stored = sorted(held - {"degraded"} | {"target"} if self._online else held)
        self._drawn = sorted(_STREAM_OF.keys() & columns)
        self._share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._orders: dict[int, np.ndarray] = {}
        self._thread = ThreadPoolExecutor(1, "batches")
        self._chunks: dict[int, Future[Chunk]] = {}
        self._current = -1

    def __call__(self, step: int) -> dict[str, Tensor]:
        """This worker's part of the batch of optimiser step `step` (from 0)."""
        number, within = divmod(step, self._chunk_steps)
        size = self._share.stop - self._share.start
        rows = slice(within * size, (within + 1) * size)
        batch = {name: to_float(values[rows]) for name, values in self._chunk(number).items()}
        return batch | {name: self._draw(name, step) for name in self._drawn}

    def _chunk(self, number: int) -> Chunk:
        if number != self._current:
            self._await(number)
            more = (number + 1) * self._chunk_steps < self._training.max_steps
            wanted = (number, number + 1) if more and not self._missing(number + 1) else (number,)
            self._chunks = {n: self._chunks.get(n) or self._thread.submit(self._load, n) for n in wanted}
            self._current = number
        return self._chunks[number].result()

    def _missing(self, number: int) -> list[int]:
        """The variants that a chunk reads and that are not prepared yet."""
        if self._variants == 1:
            return []
        steps = self._steps(number)
        first, last = steps[0] * self._training.batch_size, (steps[-1] + 1) * self._training.batch_size - 1
        epochs = range(first // self._prepared.train_rows, last // self._prepared.train_rows + 1)
        return [v for v in dict.fromkeys(map(self._variant, epochs)) if not self._prepared.is_prepared(v)]

    def _await(self, number: int) -> None:
        """Waits until all variants of a chunk are prepared. Whoever prepares them ends the trial if that fails."""
        if number in self._chunks or not (missing := self._missing(number)):
            return
        step, began = number * self._chunk_steps, time.monotonic()
        print(f"step {step}: waiting for variant {missing[0]} of the training pairs, being prepared", flush=True)
        while self._missing(number):
            time.sleep(_WAIT_SECONDS)
        print(f"step {step}: waited {duration(time.monotonic() - began)}", flush=True)

    def _steps(self, number: int) -> range:
        """The steps of a chunk. The last one ends with the training, whose end may need fewer variants."""
        first, end = number * self._chunk_steps, (number + 1) * self._chunk_steps
        return range(first, min(end, self._training.max_steps) if self._variants > 1 else end)

    def _variant(self, epoch: int) -> int:
        return epoch % self._variants

    @cached_property
    def _columns(self) -> dict[str, Column]:
        """The columns of a batch that are stored, or made from stored ones."""
        found = of_one_draw({name: self._prepared.train(name).columns[name] for name in self._stored})
        if self._online:
            found["degraded"] = pairs_columns(self._settings, self._settings.pairs.image_size)["degraded"]
        return found

    @cached_property
    def _chunk_steps(self) -> int:
        row = sum(column.bytes_per_row for column in self._columns.values())
        return chunk_steps(row * (self._share.stop - self._share.start), self._settings)

    @cached_property
    def _buffers(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Memory for the chunks with even and with odd numbers: two chunks that are needed at once have separate
        memory.

        One thread reads all chunks in turn, and batches are copies, so an overwritten chunk is no longer needed.
        """
        rows = self._chunk_steps * (self._share.stop - self._share.start)
        even, odd = ({name: np.empty((rows, *c.shape), c.dtype) for name, c in self._columns.items()} for _ in range(2))
        return even, odd

    def _load(self, number: int) -> Chunk:
        """The stored columns of a chunk's steps, one step after another, (steps x share, ...), in the stored type.

        A copy to a GPU is queued, not waited for.
        """
        batch_size, cuda = self._training.batch_size, self._device.type == "cuda"
        steps = np.array(self._steps(number))
        positions = (steps[:, None] * batch_size + np.arange(batch_size)[self._share]).reshape(-1)
        epochs, places = np.divmod(positions, self._prepared.train_rows)
        seen, first = np.unique(epochs, return_index=True)
        parts = np.split(places, first[1:])
        rows = np.concatenate([self._order(int(epoch))[part] for epoch, part in zip(seen, parts, strict=True)])
        values: dict[str, np.ndarray] = {name: held[: len(rows)] for name, held in self._buffers[number % 2].items()}
        chunk: Chunk = {}
        # Rows of one store, read at once.
        spans = [slice(*span) for span in pairwise([*first, len(rows)])] if self._variants > 1 else [slice(None)]
        for name, span in product(self._stored, spans):
            store = self._prepared.train(name, self._variant(int(epochs[span][0])))
            # Each pass over the variants uses another draw of a pair, and neighbouring pairs use different draws.
            passed = epochs[span] // self._variants
            draws = (passed + rows[span]) % store.columns[name].shape[0] if name in DRAWN else None
            store.rows(name, rows[span], draws, values[name][span])
        if self._online:
            degrade_all(values["target"], self._settings, epochs, rows, values["degraded"])
        self._augmentation(values, epochs, rows)
        if UNDAMAGED in self._columns_read:
            values[UNDAMAGED] = self._augmentation.undamaged(epochs, rows).astype(np.float16)
        with torch.cuda.device(self._device) if cuda else nullcontext():
            for name in [name for name in values if name in self._columns_read]:
                tensor = torch.from_numpy(values[name])
                chunk[name] = tensor.pin_memory().to(self._device, non_blocking=True) if cuda else tensor
        if self._window:
            self._fetch_ahead(int(positions[-1]) + 1)
        return chunk

    @cached_property
    def _augmentation(self) -> Augmentation:
        return Augmentation(self._settings, self._prepared.train_rows)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in their order."""
        if epoch not in self._orders:
            rng = np.random.default_rng([self._training.seed, _ORDER, epoch])
            if self._window:
                shards, starts = self._shards(epoch), self._starts
                windows = np.split(shards, range(self._window, len(shards), self._window))
                spans = [np.concatenate([np.arange(starts[s], starts[s + 1]) for s in window]) for window in windows]
                order = np.concatenate([rng.permutation(span) for span in spans])
            else:
                order = rng.permutation(self._prepared.train_rows)
            self._orders = {e: kept for e, kept in self._orders.items() if e >= epoch - 1} | {epoch: order}
        return self._orders[epoch]

    @property
    def _starts(self) -> np.ndarray:
        """The first row of each shard; all stages and variants have the same."""
        return self._prepared.train("target").starts

    def _shards(self, epoch: int) -> np.ndarray:
        """All shards, in the order of an epoch; a window is a group of neighbours in it."""
        rng = np.random.default_rng([self._training.seed, _SHARDS, epoch])
        return rng.permutation(len(self._starts) - 1)

    def _fetch_ahead(self, position: int) -> None:
        """Fetches the window of a position, and as many shards of the next window as training has finished in this one.

        So shards arrive as fast as they are needed, and at most two windows of a variant are in use. Those of a variant
        that is not prepared yet are not fetched ahead.
        """
        epoch, place = divmod(position, self._prepared.train_rows)
        shards = self._shards(epoch)
        now = int(np.searchsorted(np.cumsum(np.diff(self._starts)[shards]), place, side="right"))
        start, stop = now - now % self._window, now + self._window + 1
        coming = {epoch: shards[start:stop], epoch + 1: self._shards(epoch + 1)[: max(0, stop - len(shards))]}
        for of_epoch, numbers in coming.items():
            variant = self._variant(of_epoch)
            if len(numbers) and self._prepared.is_prepared(variant):
                for store in {self._prepared.train(name, variant) for name in self._stored}:
                    store.fetch(numbers)

    def _draw(self, name: str, step: int) -> Tensor:
        seed = np.random.SeedSequence([self._training.seed, _STREAM_OF[name], step]).generate_state(1, np.uint64)
        generator = torch.Generator(self._device).manual_seed(int(seed[0]))
        size = self._training.batch_size
        if name in UNIFORM:
            return torch.rand(size, generator=generator, device=self._device)[self._share]
        shape = (size, *self._prepared.train_noise)
        if name == "coarse_noise":
            return coarse_levels(shape, generator)[self._share]
        return torch.randn(shape, generator=generator, device=self._device)[self._share]


def validation_batches(
    prepared: Prepared, size: int, device: torch.device, draw: int = 0, rank: int = 0, world: int = 1
) -> Iterator[dict[str, Tensor]]:
    """The validation pairs in order, or one worker's share of the batches.

    Each has `target`, `degraded`, the `noise` of one draw and, if the method has latents, `latent_degraded`, as above.
    """
    columns = ["target", "degraded", *(["latent_degraded"] if "latents" in prepared.validation_stores else [])]
    rows = np.arange(prepared.validation_rows)
    for start in range(rank * size, len(rows), world * size):
        chosen = rows[start : start + size]
        batch = {name: prepared.validation(name).rows(name, chosen) for name in columns}
        batch["noise"] = np.stack([validation_noise(int(row), draw, prepared.validation_noise) for row in chosen])
        # The numbers that determine the noise which a stochastic sampler adds in every step.
        keys = torch.tensor([[int(row), draw] for row in chosen])
        yield {name: to_tensor(values, device) for name, values in batch.items()} | {"noise_key": keys}
