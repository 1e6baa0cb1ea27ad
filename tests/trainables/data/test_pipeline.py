"""Preparation by many processes on Ray makes the same bytes as in one, even if it is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from tests.helpers.paths import ROOT
from trainables.common import machine
from trainables.common.errors import InputError
from trainables.data.prepare import prepare
from trainables.data.ray_pipeline import ShardWork, connected_for_preparation, do_task, on_ray
from trainables.data.shards import Made, ShardMaker, Task
from trainables.data.stores.shard_format import MANIFEST
from trainables.data.stores.store import Store
from trainables.images.sources.photographs import load_photographs
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAIRS = {"pairs.train_pairs": "36", "pairs.validation_pairs": "8", "pairs.test_pairs": "0"}
CHANGES = {**PAIRS, "sinsr.draws": "1"}


def command(store: Path, *more: str, changes: Mapping[str, str] = CHANGES) -> list[str]:
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "trainables.data", "prepare", "--store", str(store), *sets, *more]


def settings() -> TrialSettings:
    return override(preset("sample").trial, CHANGES)


def manifests(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in root.glob(f"*/{MANIFEST}")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in this process, one shard after the other."""
    root = tmp_path_factory.mktemp("undisturbed")
    prepare(settings(), root, method_class("sinsr").columns(settings()))
    return root


def test_local_preparation_keeps_to_the_quota_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(machine, "_own_cgroups", lambda: iter([tmp_path]))
    with connected_for_preparation():
        assert ray.cluster_resources()["CPU"] == 1


def test_folder_that_cannot_hold_rays_sockets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    with pytest.raises(InputError, match=r"TMPDIR /proc/nowhere: not a writable folder"), connected_for_preparation():
        pass


def test_node_that_does_not_see_the_stores_makes_nothing(tiny: TrialSettings, tmp_path: Path) -> None:
    """It joined after the start. Its shards would be on its own disk, and the driver would find none."""
    store = tmp_path / "store"

    def elsewhere(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        work = ShardWork(maker, tasks, store / ".seen-0123")
        return (do_task(work, Made(task), frozenset(task.stages)) for task in tasks)

    expected = rf"^--store {store}: node {socket.gethostname()} does not see it; give one that all share"
    with pytest.raises(InputError, match=expected):
        prepare(tiny, store, {"target"}, run=elsewhere)
    assert not list(store.glob("*/shard-*"))


def test_separate_network_processes_make_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    """As with GPUs, which Ray only counts: pairs are made in one kind of process and encoded in another. Or the pairs
    exist, and only later stages are made.
    """
    latents = override(settings(), {"method": "resshift"})  # without the teacher's targets, which take longest
    columns = method_class("resshift").columns(latents)
    expected = {name: content for name, content in manifests(undisturbed).items() if not name.startswith("targets")}
    new, with_pairs = tmp_path / "new", tmp_path / "with pairs"
    for pairs in undisturbed.glob("pairs-*"):
        shutil.copytree(pairs, with_pairs / pairs.name)
    with connected_for_preparation(cpus=2, gpus=1):
        for root in (new, with_pairs):
            prepare(latents, root, columns, run=on_ray(1, device="cpu"))
            assert manifests(root) == expected


def test_preparation_killed_and_interrupted_makes_the_same_manifests(undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL to the whole process group, so that nothing can clean up; then Ctrl-C, which says how to resume."""
    rng = np.random.default_rng(0)
    counts = []
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            command(tmp_path),
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as run:
            until = len(list(tmp_path.glob("*/*.arrow"))) + int(rng.integers(1, 4))
            for _ in range(3000):
                if len(list(tmp_path.glob("*/*.arrow"))) >= until or run.poll() is not None:
                    break
                time.sleep(0.05)
            assert run.poll() is None, "done before it was killed"
            os.killpg(run.pid, number)
            _, error = run.communicate(timeout=120)
        assert run.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), error
        counts.append(len(list(tmp_path.glob("*/*.arrow"))))
        assert not manifests(tmp_path)
    assert "finished shards are kept" in error and "Traceback" not in error
    assert 0 < counts[0] <= counts[1]
    done = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept from an interrupted preparation" in done.stdout
    assert manifests(tmp_path) == manifests(undisturbed) and len(manifests(tmp_path)) == 5
    for path in tmp_path.glob("*/*.arrow"):
        assert path.read_bytes() == (undisturbed / path.relative_to(tmp_path)).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))
    again = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "pairs/s" not in again.stdout and again.stdout.count("already prepared") == 5


def test_too_many_broken_photographs_stop_the_preparation(tmp_path: Path) -> None:
    """Only their pixels are broken, so processes far from the command line find them."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(240):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    trained_on = set(load_photographs(str(folder), "train").names)
    broken = {f"{number:03d}.png" for number in range(0, 240, 10)}
    for name in broken:
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    flags = ("--data", str(folder), "--method", "pix2pix")
    changes = {**PAIRS, "pairs.train_pairs": "240"}
    strict = command(tmp_path / "stores", *flags, changes=changes)
    refused = subprocess.run(strict, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert ".png" in refused.stderr and "--set data.max_rejected=" in refused.stderr
    allowed = override(
        preset("sample").trial, {"method": "pix2pix", "data.source": str(folder), **changes, "data.max_rejected": "0.3"}
    )
    prepare(allowed, tmp_path / "stores", method_class("pix2pix").columns(allowed))
    (path,) = (tmp_path / "stores").glob("pairs-train-*")
    store = Store(path, verify=True)
    assert set(store.rejected) == trained_on & broken != set()
    assert {name.rpartition("@")[0] for name in store.names} == trained_on - broken
    assert len(store) <= 240 - len(store.rejected)
