"""Training batches depend only on seed and step, not on the number of workers; every pair occurs once per epoch."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from trainables.common.errors import InputError
from trainables.data import batches as batches_module
from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared, validation_noise
from trainables.data.stages.stage import pair_noise
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.shard_format import (
    MANIFEST,
    Column,
    describe_shard,
    encode_manifest,
    encode_shard,
    shard_name,
)
from trainables.data.stores.store import Store
from trainables.images.tensors import upsample
from trainables.settings import TrialSettings, override

CPU = torch.device("cpu")
COLUMNS = (
    "target",
    "degraded",
    "latent",
    "latent_degraded",
    "noise",
    "taught",
    "fresh_noise",
    "jump_noise",
    "uniform",
)


def batches(prepared: Prepared, settings: TrialSettings, rank: int = 0, world: int = 1) -> TrainingBatches:
    return TrainingBatches(prepared, settings, COLUMNS, CPU, rank, world)


def rows_of(prepared: Prepared, column: str, values: Tensor) -> list[int]:
    """The training pairs to which the values of a column belong."""
    known = torch.from_numpy(prepared.train(column)[column].copy())
    return [int((known - value).abs().flatten(1).sum(1).argmin()) for value in values]


def test_batch_has_the_requested_columns(tiny: TrialSettings, prepared: Prepared) -> None:
    batch = batches(prepared, tiny)(0)
    shapes = {name: tuple(values.shape) for name, values in batch.items()}
    latent = (4, 8, 16, 16)
    assert shapes == {
        "target": (4, 3, 64, 64),
        "degraded": (4, 3, 16, 16),
        **dict.fromkeys(COLUMNS[2:-1], latent),
        "uniform": (4,),
    }
    assert {values.dtype for values in batch.values()} == {torch.float32}
    for name in ("target", "degraded"):
        assert -1 <= batch[name].min() < 0 < batch[name].max() <= 1
    assert bool((batch["uniform"] >= 0).all() and (batch["uniform"] < 1).all())
    few = TrainingBatches(prepared, tiny, {"latent", "uniform"}, CPU)(0)
    assert set(few) == {"latent", "uniform"}
    assert torch.equal(few["uniform"], batch["uniform"])  # with any other columns


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_the_batch_of_one_worker(tiny: TrialSettings, prepared: Prepared, world: int) -> None:
    alone = batches(prepared, tiny)
    shares = [batches(prepared, tiny, rank, world) for rank in range(world)]
    for step in range(5):
        parts = [share(step) for share in shares]
        for name, whole in alone(step).items():
            assert torch.equal(torch.cat([part[name] for part in parts]), whole)


def test_batch_does_not_depend_on_earlier_batches(tiny: TrialSettings, prepared: Prepared) -> None:
    """So a trial that continues at step k sees the same batches."""
    running = batches(prepared, tiny)
    seen = [running(step) for step in range(7)]
    for step in (6, 3, 0):
        for name, values in batches(prepared, tiny)(step).items():
            assert torch.equal(values, seen[step][name])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 8, 20])
def test_every_pair_occurs_once_per_epoch(tiny: TrialSettings, prepared: Prepared, batch_size: int) -> None:
    """Also if an epoch ends within a batch, or a batch contains more than one epoch."""
    at = batches(prepared, override(tiny, {"training.batch_size": batch_size}))
    epochs = 3
    steps = -(-epochs * prepared.train_rows // batch_size)
    order = [row for step in range(steps) for row in rows_of(prepared, "latent", at(step)["latent"])]
    passes = [order[k * 8 : (k + 1) * 8] for k in range(epochs)]
    assert all(sorted(one) == list(range(8)) for one in passes)
    assert len({tuple(one) for one in passes}) == epochs


def test_columns_of_a_row_belong_together(tiny: TrialSettings, prepared: Prepared) -> None:
    shape = prepared.train_noise
    taught = prepared.train("taught")["taught"]
    for step in range(4):
        batch = batches(prepared, tiny)(step)
        rows = rows_of(prepared, "latent", batch["latent"])
        assert rows == rows_of(prepared, "target", (batch["target"] + 1) * 127.5)
        assert rows == rows_of(prepared, "latent_degraded", batch["latent_degraded"])
        for row, noise, x0 in zip(rows, batch["noise"].numpy(), batch["taught"].numpy(), strict=True):
            draws = [pair_noise(tiny.data.seed, row, draw, shape) for draw in range(tiny.sinsr.draws)]
            (draw,) = [d for d, known in enumerate(draws) if np.array_equal(known, noise)]
            np.testing.assert_array_equal(x0, taught[row, draw])


def test_noise_draws_alternate_between_and_within_epochs(tiny: TrialSettings, prepared: Prepared) -> None:
    at = batches(prepared, override(tiny, {"training.batch_size": 8}))
    stored = prepared.train("noise")["noise"]
    used: list[dict[int, int]] = []
    for epoch in range(3):
        batch = at(epoch)
        draws = {}
        for row, noise in zip(rows_of(prepared, "latent", batch["latent"]), batch["noise"].numpy(), strict=True):
            (draws[row],) = [d for d, known in enumerate(stored[row]) if np.array_equal(known, noise)]
        used.append(draws)
    assert all(set(draws.values()) == {0, 1} for draws in used)
    assert all(used[0][row] != used[1][row] for row in range(8))
    assert used[0] == used[2]  # the number of draws is 2


def test_fresh_noise_is_standard_normal_and_new_in_every_step(tiny: TrialSettings, prepared: Prepared) -> None:
    names = {"fresh_noise", "jump_noise", "uniform"}
    at = TrainingBatches(prepared, override(tiny, {"training.batch_size": 8}), names, CPU)
    drawn = [at(step) for step in range(16)]
    noise, other = (torch.cat([batch[name] for batch in drawn]) for name in ("fresh_noise", "jump_noise"))
    assert abs(float((noise * other).mean())) < 5 / noise.numel() ** 0.5
    uniform = torch.cat([batch["uniform"] for batch in drawn])
    count = noise.numel()  # about 98,000: the mean's standard error is 0.003
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / count) ** 0.5
    assert len({float(value) for value in uniform}) == len(uniform) == 128
    assert 0.35 < float(uniform.mean()) < 0.65


def test_training_seed_changes_only_the_order(tiny: TrialSettings, prepared: Prepared) -> None:
    whole = {"training.batch_size": 8}
    one, two = (batches(prepared, override(tiny, {**whole, "training.seed": seed}))(0) for seed in (0, 1))
    first, second = (rows_of(prepared, "latent", batch["latent"]) for batch in (one, two))
    assert first != second and sorted(first) == sorted(second)
    assert not torch.equal(one["fresh_noise"], two["fresh_noise"])


@pytest.mark.parametrize(("batch_size", "accumulate", "world"), [(4, 1, 3), (4, 4, 2), (6, 2, 2)])
def test_batch_must_be_divisible_among_workers(
    tiny: TrialSettings, prepared: Prepared, batch_size: int, accumulate: int, world: int
) -> None:
    settings = override(tiny, {"training.batch_size": batch_size, "training.accumulate": accumulate})
    expected = f"training.batch_size={batch_size}: expected a multiple of {world * accumulate}, {world} workers x"
    with pytest.raises(InputError, match=expected):
        batches(prepared, settings, 0, world)


NUMBERED = {
    "pairs": {"target": Column("uint8", (3, 4, 4)), "degraded": Column("uint8", (3, 2, 2))},
    "latents": {"latent": Column("float16", (2, 2, 2)), "latent_degraded": Column("float32", (2, 2, 2))},
    "targets": {"noise": Column("float16", (2, 2, 2, 2)), "taught": Column("float16", (2, 2, 2, 2))},
}


def numbered(root: Path, sizes: tuple[int, ...]) -> Prepared:
    """Stores with shards of these sizes; all values of a row are the row's number."""
    for stage, columns in NUMBERED.items():
        folder, shards, start = StoreFolder(str(root), stage), [], 0
        for number, size in enumerate(sizes):
            rows = np.arange(start, start + size)
            values = {name: np.empty((size, *c.shape), c.dtype) for name, c in columns.items()}
            for column in values.values():
                column[:] = rows.reshape(-1, *[1] * (column.ndim - 1))
            file = encode_shard(columns, values)
            folder.write(shard_name(number), file)
            shards.append(describe_shard(file))
            start += size
        folder.write(MANIFEST, encode_manifest(stage, {}, columns, shards))
    return Prepared({stage: str(root / stage) for stage in NUMBERED}, {}, (2, 2, 2), (2, 2, 2))


STORED = ("target", "latent", "latent_degraded", "taught")


def numbers(batch: dict[str, Tensor]) -> list[int]:
    """The rows of a batch of `numbered`; all columns must agree."""
    rows = batch["latent"][:, 0, 0, 0].int().tolist()
    for name in STORED:
        values = (batch[name] + 1) * 127.5 if name == "target" else batch[name]
        assert values.round().flatten(1).int().tolist() == [[row] * values[0].numel() for row in rows]
    return rows


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("world", [1, 2])
def test_steps_can_be_read_in_any_order(
    tiny: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, world: int
) -> None:
    """With any chunk size, after any other steps."""
    prepared = numbered(tmp_path, (5, 0, 6, 2))
    settings = override(tiny, {"training.max_steps": 20})
    expected = [numbers(TrainingBatches(prepared, settings, STORED, CPU)(step)) for step in range(24)]
    monkeypatch.setattr(batches_module, "_CHUNK_STEPS", chunk)
    workers = [TrainingBatches(prepared, settings, STORED, CPU, rank, world) for rank in range(world)]
    for step in [*range(24), *np.random.default_rng(0).integers(0, 24, 60).tolist()]:
        assert [row for worker in workers for row in numbers(worker(step))] == expected[step]


def test_batch_is_a_copy(tiny: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_CHUNK_STEPS", 1)
    prepared, settings = numbered(tmp_path, (13,)), override(tiny, {"training.max_steps": 20})
    at = TrainingBatches(prepared, settings, STORED, CPU)
    first, rows = at(0), numbers(at(0))
    for step in range(1, 6):
        for values in at(step).values():
            values.zero_()
    assert numbers(first) == rows  # later reads do not overwrite it ...
    assert numbers(at(0)) == rows  # ... and changing a batch does not change the store


def test_chunk_size_is_limited(tiny: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_CHUNK_BYTES", 3000)  # a step of four rows takes 4 x (48 + 16 + 32 + 16) bytes
    settings = override(tiny, {"training.max_steps": 20})
    read: list[tuple[int, int]] = []
    rows_of = Store.rows

    def watched(store: Store, name: str, indices: np.ndarray, *more: Any) -> np.ndarray:
        values = rows_of(store, name, indices, *more)
        if store.path.is_relative_to(tmp_path):  # a thread of another test may still read ahead
            read.append((len(indices), values.nbytes))
        return values

    monkeypatch.setattr(Store, "rows", watched)
    at = TrainingBatches(numbered(tmp_path, (13,)), settings, STORED, CPU)
    for step, chunks in ((0, 2), (5, 2), (6, 3)):  # six steps per chunk, and the next six read ahead
        at(step)
        assert _within(10, lambda expected=4 * chunks: len(read) == expected)  # type: ignore[misc]
    for start in (0, 4, 8):
        chunk = read[start : start + 4]  # of the four columns
        assert {rows for rows, _ in chunk} == {24} and sum(size for _, size in chunk) == 24 * 112 < 3000


def _threads() -> int:
    gc.collect()
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


def _within(seconds: float, reached: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.01)
    return reached()


def test_reader_thread_ends_with_its_batches(tiny: TrialSettings, tmp_path: Path) -> None:
    prepared, before = numbered(tmp_path, (13,)), _threads()
    at = TrainingBatches(prepared, tiny, STORED, CPU)
    at(0)
    assert _threads() == before + 1
    del at
    assert _within(10, lambda: _threads() <= before)


def test_reader_thread_error_is_raised_in_the_step(tiny: TrialSettings, tmp_path: Path) -> None:
    prepared = numbered(tmp_path, (6, 7))
    prepared.train("taught")  # opened before it is damaged
    (tmp_path / "targets" / shard_name(1)).unlink()
    with pytest.raises(InputError, match=f"{tmp_path / 'targets'}: damaged store, it cannot be read"):
        TrainingBatches(prepared, tiny, STORED, CPU)(0)


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_windows_contain_every_row_once_per_epoch(tiny: TrialSettings, tmp_path: Path, window: int) -> None:
    sizes = (4, 4, 1, 4, 3)
    prepared = numbered(tmp_path, sizes)
    settings = override(tiny, {"data.window_shards": window, "training.batch_size": 16})
    at = TrainingBatches(prepared, settings, STORED, CPU)
    ends = np.cumsum(sizes)
    orders = set()
    for epoch in range(8):
        rows = numbers(at(epoch))
        assert sorted(rows) == list(range(16))
        places = [[rows.index(row) for row in range(end - size, end)] for size, end in zip(sizes, ends, strict=True)]
        started = [sum(min(shard) <= place <= max(shard) for shard in places) for place in range(16)]
        assert min(window, 2) <= max(started) <= window  # shards in use
        orders.add(tuple(rows))
        again = TrainingBatches(prepared, settings, STORED, CPU)
        assert numbers(again(epoch)) == rows
    assert len(orders) == 8


class Source(StoreFolder):
    """A folder that logs what is read from it."""

    def read(self, file: str) -> pa.Buffer:
        with Path(self.root, f"{self.name}.txt").open("a") as log:
            log.write(f"{file}\n")
        return super().read(file)

    @property
    def reads(self) -> list[str]:
        return Path(self.root, f"{self.name}.txt").read_text().split()


def test_store_larger_than_disk_is_read_in_windows(
    tiny: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shard is fetched once per epoch, before its rows are needed, and at most two windows are on this disk."""
    shards, window, epochs = 10, 2, 2
    whole = numbered(tmp_path / "source", (8,) * shards)
    sources = {}
    for stage in NUMBERED:
        folder = tmp_path / "here" / stage
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_bytes((tmp_path / "source" / stage / MANIFEST).read_bytes())
        sources[str(folder)] = Source(str(tmp_path / "source"), stage)
    stores = {stage: str(tmp_path / "here" / stage) for stage in NUMBERED}
    passing = Prepared(stores, {}, (2, 2, 2), (2, 2, 2), sources, 2 * window)
    monkeypatch.setattr(batches_module, "_CHUNK_STEPS", 1)
    steps = epochs * shards * 8 // 4
    settings = override(tiny, {"data.window_shards": window, "training.max_steps": steps})
    local, here = TrainingBatches(whole, settings, STORED, CPU), TrainingBatches(passing, settings, STORED, CPU)
    for step in range(steps):
        assert numbers(here(step)) == numbers(local(step))
        for folder in stores.values():
            # For a moment one more: a shard is mapped before another is deleted, so that two readers can continue.
            assert len(list(Path(folder).glob("shard-*"))) <= 2 * window + 1
    for folder in stores.values():
        assert _within(10, lambda here=Path(folder): len(list(here.glob("shard-*"))) <= 2 * window)  # type: ignore[misc]
    for source in sources.values():
        # The shards fetched at the end belong to the next epoch.
        assert epochs * shards <= len(source.reads) <= epochs * shards + window + 1
        assert sorted(source.reads[:shards]) == [shard_name(number) for number in range(shards)]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_validation_reads_every_pair_once_in_order(tiny: TrialSettings, prepared: Prepared, size: int) -> None:
    parts = list(validation_batches(prepared, size, CPU))
    assert [len(part["target"]) for part in parts][:-1] == [size] * (len(parts) - 1)
    target = torch.cat([part["target"] for part in parts])
    stored = torch.from_numpy(prepared.validation("target")["target"].copy())
    assert torch.equal(((target + 1) * 127.5).round().byte(), stored)
    for name in ("target", "degraded", "latent_degraded", "noise"):
        assert sum(len(part[name]) for part in parts) == 3
    assert torch.cat([part["noise_key"] for part in parts]).tolist() == [[0, 0], [1, 0], [2, 0]]


def test_validation_noise_depends_on_row_and_draw_only(prepared: Prepared) -> None:
    """Not on the rest of the batch. Draw 0 is the noise that earlier versions stored, so that results stay
    comparable.
    """
    shape = prepared.validation_noise
    assert shape == prepared.validation("latent").columns["latent"].shape
    draws = [next(validation_batches(prepared, 3, CPU, draw)) for draw in range(3)]
    for draw, batch in enumerate(draws):
        assert batch["noise_key"].tolist() == [[row, draw] for row in range(3)]
        alone = torch.cat([part["noise"] for part in validation_batches(prepared, 1, CPU, draw)])
        assert torch.equal(batch["noise"], alone)
        for row, noise in enumerate(batch["noise"]):
            np.testing.assert_array_equal(noise, validation_noise(row, draw, shape))
        assert torch.equal(batch["target"], draws[0]["target"])
    everything = torch.cat([batch["noise"] for batch in draws]).flatten(1)
    assert (torch.corrcoef(everything) - torch.eye(9)).abs().max() < 0.15  # 3,072 numbers each: 0.018 expected
    stored = np.random.default_rng([8, 2]).standard_normal(shape, np.float32)
    np.testing.assert_array_equal(draws[0]["noise"][2], stored)


def test_noise_without_latents_has_image_shape(tiny: TrialSettings, tmp_path: Path) -> None:
    settings = override(tiny, {"method": "pixel_diffusion", "pairs.validation_size": 128})
    prepared = prepare(settings, tmp_path, {"target", "degraded"})
    (batch,) = validation_batches(prepared, 3, CPU)
    assert set(batch) == {"target", "degraded", "noise", "noise_key"}
    assert batch["noise"].shape == batch["target"].shape == (3, 3, 128, 128)
    trained = TrainingBatches(prepared, settings, {"target", "fresh_noise"}, CPU)(0)
    assert trained["fresh_noise"].shape == trained["target"].shape == (4, 3, 64, 64)


def test_upsampling_is_bicubic_convolution() -> None:
    """Against a direct evaluation of Keys' kernel with a = -0.75, pixel centres aligned, borders repeated."""
    scale, rng = 4, np.random.default_rng(0)
    image = rng.standard_normal((5, 6))

    def matrix(size: int) -> np.ndarray:
        weights = np.zeros((size * scale, size))
        for out in range(size * scale):
            centre = (out + 0.5) / scale - 0.5
            for near in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                d, a = abs(centre - near), -0.75
                value = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
                weights[out, min(max(near, 0), size - 1)] += value
        return weights

    expected = matrix(5) @ image @ matrix(6).T
    np.testing.assert_allclose(upsample(torch.from_numpy(image)[None, None], scale)[0, 0], expected, atol=1e-12)
