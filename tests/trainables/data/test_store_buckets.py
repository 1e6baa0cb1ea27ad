"""Prepared stores in a bucket: made there shard by shard, copied to a machine once, or read in parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SMALL_NETWORK
from tests.helpers.buckets import endpoint
from trainables.common.errors import InputError
from trainables.data.batches import TrainingBatches
from trainables.data.prepare import make_stores, prepare
from trainables.data.prepared import Prepared, open_stores
from trainables.data.shards import Made, ShardMaker, Task, run_here
from trainables.data.stages.needed import needed_stages
from trainables.data.stores.inventory import WINDOWS
from trainables.data.stores.roots import local_root
from trainables.data.stores.shard_format import MANIFEST, shard_name
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.training.job import Job, Workers
from trainables.training.loop import World
from trainables.training.trial_process import train_job

__all__ = ["endpoint"]
COLUMNS = frozenset({"degraded", "latent", "latent_degraded"})


@pytest.fixture
def root(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A separate bucket, copied to a folder below `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = tmp_path.name.replace("_", "-")[-40:].strip("-")
    client(endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/stores?endpoint_override={endpoint}&scheme=http&region=us-east-1"


@pytest.fixture
def settings(tiny: TrialSettings) -> TrialSettings:
    """Training pairs in three shards."""
    return override(tiny, {"pairs.train_pairs": 40})


def client(endpoint: str) -> object:
    return boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")


def keys(endpoint: str, root: str) -> list[str]:
    bucket = root.split("/")[2]
    return [found["Key"] for found in client(endpoint).list_objects_v2(Bucket=bucket).get("Contents", [])]  # type: ignore[attr-defined]


def counted(made: list[Task]) -> object:
    def run(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        for done in run_here(maker, tasks):
            if done.kept != done.task.stages:
                made.append(done.task)
            yield done

    return run


def rows_of(prepared: Prepared, column: str) -> np.ndarray:
    return prepared.train(column)[column]


def test_store_in_a_bucket_equals_local_store(
    settings: TrialSettings, root: str, endpoint: str, tmp_path: Path
) -> None:
    here = prepare(settings, tmp_path / "here", COLUMNS)
    made: list[Task] = []
    there = prepare(settings, root, COLUMNS, run=counted(made))  # type: ignore[arg-type]
    assert len(made) == 4
    for name, path in here.train_stores.items():
        mirrored = Path(there.train_stores[name])
        assert local_root(root) in mirrored.parents
        for file in (MANIFEST, shard_name(0), shard_name(2)):
            assert (mirrored / file).read_bytes() == (Path(path) / file).read_bytes()
    assert sum(key.endswith(MANIFEST) for key in keys(endpoint, root)) == 4

    # A second process on the machine copies and makes nothing.
    shard = Path(there.train_stores["latents"]) / shard_name(1)
    before = shard.stat().st_mtime_ns
    again = prepare(settings, root, COLUMNS, run=counted(made))  # type: ignore[arg-type]
    assert len(made) == 4 and shard.stat().st_mtime_ns == before
    np.testing.assert_array_equal(rows_of(again, "latent"), rows_of(here, "latent"))


def test_another_machine_only_copies(
    settings: TrialSettings, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(settings, root, COLUMNS)
    expected = rows_of(first, "latent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    made: list[Task] = []
    second = prepare(settings, root, COLUMNS, run=counted(made))  # type: ignore[arg-type]
    assert not made and (tmp_path / "other") in Path(second.train_stores["latents"]).parents
    np.testing.assert_array_equal(rows_of(second, "latent"), expected)


def test_interrupted_preparation_resumes_from_the_bucket(settings: TrialSettings, root: str, endpoint: str) -> None:
    class Interrupted(Exception):
        pass

    def cut_off(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        yield from run_here(maker, tasks[:2])
        raise Interrupted

    with pytest.raises(Interrupted):
        prepare(settings, root, COLUMNS, run=cut_off)
    assert not [key for key in keys(endpoint, root) if key.endswith(MANIFEST)]
    made: list[Task] = []
    prepare(settings, root, COLUMNS, run=counted(made))  # type: ignore[arg-type]
    assert [(task.split, task.number) for task in made] == [("train", 2), ("validation", 0)]


def test_damaged_shard_of_a_bucket_is_refused(
    settings: TrialSettings, root: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(settings, root, COLUMNS)
    (key,) = [key for key in keys(endpoint, root) if "latents-train" in key and key.endswith(shard_name(1))]
    bucket, content = root.split("/")[2], client(endpoint)
    body = bytearray(content.get_object(Bucket=bucket, Key=key)["Body"].read())  # type: ignore[attr-defined]
    body[len(body) // 2] ^= 1
    content.put_object(Bucket=bucket, Key=key, Body=bytes(body))  # type: ignore[attr-defined]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"latents-train-.*/shard-00001.arrow does not match its manifest"):
        prepare(settings, root, COLUMNS)


def test_only_two_windows_are_on_disk(settings: TrialSettings, root: str) -> None:
    """All rows of an epoch are read, and at most two windows of one shard are on this machine's disk."""
    windowed = override(settings, {"data.window_shards": 1})
    prepared = prepare(windowed, root, COLUMNS)
    latents = Path(prepared.train_stores["latents"])
    assert not list(latents.glob("shard-*"))
    batches = TrainingBatches(prepared, windowed, {"latent"}, torch.device("cpu"))
    seen = []
    for step in range(10):
        seen.append(batches(step)["latent"])
        assert len(list(latents.glob("shard-*"))) <= 2
    whole = rows_of(prepare(settings, root, COLUMNS), "latent").astype(np.float32)
    order = [int(np.abs(whole - row.numpy()).sum((1, 2, 3)).argmin()) for row in torch.cat(seen)]
    assert sorted(order) == list(range(40)) and order != sorted(order)
    assert np.count_nonzero(np.diff(np.array(order) // 16)) == 2  # shard after shard


def test_variant_that_arrives_late_is_read_in_windows(settings: TrialSettings, root: str, tmp_path: Path) -> None:
    """The same batches as from stores on this disk; at most two windows of each variant are here."""
    changes = {"data.window_shards": 1, "pairs.variants": 2, "training.batch_size": 4, "training.max_steps": 25}
    windowed, images = override(settings, changes), {"degraded"}
    here = TrainingBatches(prepare(windowed, tmp_path, images), windowed, images, torch.device("cpu"))
    stages = needed_stages(windowed, root, images)
    make_stores(windowed, [stage for stage in stages if not stage.variant])
    there = TrainingBatches(open_stores(windowed, stages), windowed, images, torch.device("cpu"))
    for step in range(25):
        if step == 10:  # the second epoch
            make_stores(windowed, stages)
        assert torch.equal(there(step)["degraded"], here(step)["degraded"])
        for folder in (local_root(root) / WINDOWS).glob("pairs-train-*"):
            assert len(list(folder.glob("shard-*"))) <= 2
    assert len(list((local_root(root) / WINDOWS).glob("pairs-train-*"))) == 2


def test_trial_reads_from_a_bucket(
    settings: TrialSettings, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine than the one that prepared, without the stores and the photographs."""
    settings = override(settings, {"method": "resshift", **SMALL_NETWORK, "data.source": str(tmp_path / "photographs")})
    some_photographs(tmp_path / "photographs")
    stages = tuple(needed_stages(settings, root, method_class("resshift").columns(settings)))
    make_stores(settings, stages)
    shutil.rmtree(tmp_path / "photographs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    sent: list[dict[str, Any]] = []
    trial, scratch = tmp_path / "run" / "trials" / "t000", tmp_path / "scratch"
    (tmp_path / "run").mkdir()
    train_job(Job(settings, stages, ("val/psnr",), Workers(), str(trial), str(scratch)), World(), sent.append)
    assert sent[-1]["step"] == settings.training.max_steps and np.isfinite(sent[-1]["val/psnr"])


def some_photographs(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
