"""Preparation that is interrupted, finds broken photographs or runs twice at once: finished shards are kept and made
once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.preparation import made_by
from trainables.common.errors import InputError
from trainables.common.locks import locked
from trainables.data.prepare import REJECTED, bytes_to_come, prepare
from trainables.data.shards import Made, ShardMaker, Task, run_here
from trainables.data.stages.needed import needed_stages
from trainables.data.stores.shard_format import MANIFEST, shard_name
from trainables.data.stores.store import Store
from trainables.settings import TrialSettings, override


def store_of(root: Path, stage: str) -> Path:
    (path,) = root.glob(f"{stage}-*")
    return path


def in_shards(tiny: TrialSettings) -> TrialSettings:
    """Training pairs in three shards, of 16, 16 and 8 rows."""
    return override(tiny, {"pairs.train_pairs": 40})


PAIRS_AND_LATENTS = frozenset({"degraded", "latent", "latent_degraded"})


def test_interrupted_preparation_resumes_from_finished_shards(tiny: TrialSettings, tmp_path: Path) -> None:
    settings = in_shards(tiny)
    whole = tmp_path / "whole"
    prepare(settings, whole, PAIRS_AND_LATENTS)

    class Interrupted(Exception):
        pass

    def cut_off(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        yield from run_here(maker, tasks[:2])
        raise Interrupted

    root = tmp_path / "stores"
    with pytest.raises(Interrupted):
        prepare(settings, root, PAIRS_AND_LATENTS, run=cut_off)
    latents = store_of(root, "latents-train")
    assert not (latents / MANIFEST).exists() and {path.name for path in latents.iterdir()} == {
        shard_name(0),
        shard_name(1),
    }
    # A crash may leave half a file, and one under a temporary name.
    (latents / shard_name(1)).write_bytes((latents / shard_name(1)).read_bytes()[:-100])
    (latents / f".{shard_name(2)}.1.partial").write_bytes(b"half")
    assert made_by(settings, root, PAIRS_AND_LATENTS) == {
        "train pairs": 8,
        "train latents": 16 + 8,
        "validation pairs": 3,
        "validation latents": 3,
    }
    for path in whole.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert (root / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert not list(root.rglob("*.partial"))


@pytest.mark.parametrize("processes", [1, 2])
def test_later_stages_are_made_again_with_the_pairs(tiny: TrialSettings, tmp_path: Path, processes: int) -> None:
    """With GPUs, one process makes the pairs of a shard and another one its latents."""
    settings = in_shards(tiny)
    prepare(settings, tmp_path, PAIRS_AND_LATENTS)
    for stage in ("pairs-train", "latents-train"):
        (store_of(tmp_path, stage) / MANIFEST).unlink()
    pairs = store_of(tmp_path, "pairs-train") / shard_name(1)
    pairs.write_bytes(pairs.read_bytes()[:-100])
    kept: dict[int, tuple[str, ...]] = {}

    def run(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        for task in tasks:
            parts = [task.stages] if processes == 1 else [(name,) for name in task.stages]
            made = Made(task)
            for stages in parts:
                own = maker(replace(task, stages=stages), made.made_again)
                made = Made(task, {**made.shards, **own.shards}, (*made.kept, *own.kept), own.error)
            kept[task.number] = made.kept
            yield made

    prepare(settings, tmp_path, PAIRS_AND_LATENTS, run=run)
    assert kept == {0: ("pairs", "latents"), 1: (), 2: ("pairs", "latents")}


def test_preparation_that_waits_for_another_one_says_so(
    tiny: TrialSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, columns = override(tiny, {"method": "pix2pix"}), frozenset({"target"})
    folder = needed_stages(settings, tmp_path, columns)[0].folder.local
    second = threading.Thread(target=prepare, args=(settings, tmp_path, columns))
    said = ""
    with locked(folder.with_name(f".{folder.name}.lock")):
        second.start()
        while "\n" not in said and second.is_alive():
            time.sleep(0.05)
            said += capsys.readouterr().err
        assert second.is_alive() and not folder.exists()
    second.join()
    assert said + capsys.readouterr().err == f"another process prepares {folder}; waiting for it\n"
    assert len(Store(folder))


def test_shards_do_not_depend_on_their_order(tiny: TrialSettings, tmp_path: Path) -> None:
    settings = in_shards(tiny)
    prepare(settings, tmp_path / "one", PAIRS_AND_LATENTS)
    prepare(settings, tmp_path / "two", PAIRS_AND_LATENTS, run=lambda maker, tasks: run_here(maker, tasks[::-1]))
    for path in (tmp_path / "one").rglob("shard-*"):
        assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()


def photographs(folder: Path, count: int, side: int = 96) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return folder


def test_photographs_found_broken_are_rejected_by_name(tiny: TrialSettings, tmp_path: Path) -> None:
    """Of more than 200 images only the headers are read at first; damaged pixels are found during preparation."""
    folder = photographs(tmp_path / "photographs", 220)
    changes = {"method": "pix2pix", "data.source": str(folder), "pairs.train_pairs": 220, "pairs.validation_pairs": 3}
    settings = override(tiny, changes)
    first = prepare(settings, tmp_path / "stores", frozenset({"target"}))
    used = {name.partition("@")[0] for name in first._store(first.train_stores["pairs"]).names}
    assert len(used) == len(set(used)) and first.train_rows == 220

    broken = sorted(used)[5]
    (folder / broken).write_bytes((folder / broken).read_bytes()[:200])
    with pytest.raises(InputError, match=rf"1 of .*{broken}.*--set data.max_rejected=0\.00[56]"):
        prepare(override(settings, {"data.max_rejected": 0.001}), tmp_path / "stores", frozenset({"target"}))
    again = prepare(settings, tmp_path / "stores", frozenset({"target"}))
    store = Store(again.train_stores["pairs"], verify=True)
    left = {name.partition("@")[0] for name in store.names}
    assert broken not in left and left == used - {broken} and again.train_rows == len(store) < 220
    (rejected,) = pq.read_table(Path(again.train_stores["pairs"]) / REJECTED).to_pylist()
    assert rejected["name"] == broken and "\n" not in rejected["reason"]
    assert list(store.rejected) == [broken]


def test_stores_of_different_pairs_are_refused(tiny: TrialSettings, tmp_path: Path) -> None:
    """The pairs were deleted and made again with other rows, because a photograph had become unreadable."""
    folder = photographs(tmp_path / "photographs", 220)
    changes = {"data.source": str(folder), "pairs.train_pairs": 40, "data.max_rejected": 0.1}
    settings = override(tiny, changes)
    first = prepare(settings, tmp_path / "stores", PAIRS_AND_LATENTS)
    pairs = Path(first.train_stores["pairs"])
    broken = folder / Store(pairs).names[0].partition("@")[0]
    whole, stamp = broken.read_bytes(), broken.stat()
    shutil.rmtree(pairs)
    broken.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    os.utime(broken, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # its size and time are unchanged
    with pytest.raises(InputError, match=r"latents-train-\w+: was made from other pairs than .*; delete it"):
        prepare(settings, tmp_path / "stores", PAIRS_AND_LATENTS)


def test_bytes_to_come_counts_missing_shards(tiny: TrialSettings, tmp_path: Path) -> None:
    stages = needed_stages(in_shards(tiny), tmp_path, PAIRS_AND_LATENTS)
    everything = sum(stage.bytes for stage in stages)
    assert bytes_to_come(stages) == everything
    prepare(in_shards(tiny), tmp_path, PAIRS_AND_LATENTS)
    assert bytes_to_come(stages) == 0
    latents = stages[1]
    (latents.folder.local / MANIFEST).unlink()
    (latents.folder.local / shard_name(2)).unlink()
    assert bytes_to_come(stages) == 8 * latents.bytes_per_row


_OTHER_PROCESS = """
import json, sys
from pathlib import Path
import torch
import trainables.pretrained.shipped  # which the first call would import, for seconds
from trainables.data.prepare import prepare
from trainables.settings.presets import preset
from trainables.settings import override

torch.set_num_threads(1)
settings = override(preset("sample").trial, json.loads(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
made = []
prepare(settings, Path(sys.argv[1]), {"latent"}, progress=lambda stage, done, rows: made.append(stage))
print(json.dumps(made), flush=True)
"""


@pytest.mark.slow
def test_concurrent_processes_make_each_store_once(tiny: TrialSettings, tmp_path: Path) -> None:
    changes = {"pairs.train_pairs": 8, "pairs.validation_pairs": 3, "pairs.validation_size": 64}
    command = [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path), json.dumps(changes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        here: list[str] = []

        def progress(stage: str, done: int, rows: int) -> None:
            if not here:  # the stores are locked and empty: the other process finds them missing too
                other.stdin.write("go\n")
                other.stdin.flush()
                time.sleep(2)
            here.append(stage)

        prepare(override(tiny, changes), tmp_path, {"latent"}, progress=progress)
        there = json.loads(other.stdout.readline())
    assert other.returncode == 0
    assert here and there == []
