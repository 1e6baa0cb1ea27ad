"""Checkpoints in a bucket: half an upload is no checkpoint, and a garbled one is noticed. On a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.buckets import bucket_uri, endpoint
from tests.trainables.training.test_checkpoint_folders import writer
from trainables.common.buckets import BucketFolder
from trainables.data.prepare import make_stores
from trainables.data.stages.needed import needed_stages
from trainables.methods.build import method_class
from trainables.settings import TrialSettings
from trainables.training.bucket_checkpoints import download_newest, drop_older_in, upload_checkpoint
from trainables.training.checkpoint_folders import CheckpointNotWritten, damage, keep_checkpoint
from trainables.training.job import Job, Workers
from trainables.training.loop import World
from trainables.training.results import CHECKPOINT, DAMAGED, REPEATED
from trainables.training.trial_process import train_job

__all__ = ["endpoint"]
Change = Callable[[BucketFolder, str], object]


@pytest.fixture
def trial(endpoint: str, tmp_path: Path) -> BucketFolder:
    """An empty trial of a run."""
    return BucketFolder(bucket_uri(endpoint, f"{tmp_path.name}/trials/t000"), patient=False)


def uploaded(trial: BucketFolder, node: Path, *steps: int) -> list[str]:
    """The names of the checkpoints that are in the bucket after these were written on a node."""
    for step in steps:
        upload_checkpoint(keep_checkpoint(node, step, writer(float(step))), trial)
    return sorted({name.split("/")[0] for name in trial.objects()})


def garble(trial: BucketFolder, name: str) -> None:
    content = bytearray(trial.read(name) or b"")
    content[len(content) // 2] ^= 1
    trial.write(name, bytes(content))


def delete(trial: BucketFolder, name: str) -> None:
    trial.delete([name])


def test_the_newest_two_are_kept_and_read_on_another_node(trial: BucketFolder, tmp_path: Path) -> None:
    assert uploaded(trial, tmp_path / "a", 2, 4, 10) == ["checkpoint_000004", "checkpoint_000010"]
    found, damaged = download_newest(trial, tmp_path / "b")
    assert found == tmp_path / "b" / "checkpoint_000010" and not damaged and not damage(found)
    for path in (tmp_path / "a" / "checkpoint_000010").iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes()

    before = (found / "state.pt").stat().st_mtime_ns
    download_newest(trial, tmp_path / "b")  # another process of the node
    assert (found / "state.pt").stat().st_mtime_ns == before

    drop_older_in(trial)
    assert {name.split("/")[0] for name in trial.objects()} == {"checkpoint_000010"}


def test_some_files_of_a_checkpoint(trial: BucketFolder, tmp_path: Path) -> None:
    uploaded(trial, tmp_path / "a", 2)
    found, _ = download_newest(trial, tmp_path / "b", {"settings.json", "weights.safetensors"})
    assert found is not None and [path.name for path in found.iterdir()] == ["settings.json"]


@pytest.mark.parametrize("change", [garble, delete])
@pytest.mark.parametrize("name", ["state.pt", "settings.json", "checksums.json"])
def test_a_damaged_checkpoint_is_skipped(trial: BucketFolder, tmp_path: Path, name: str, change: Change) -> None:
    uploaded(trial, tmp_path / "a", 2, 4)
    change(trial, f"checkpoint_000004/{name}")
    found, damaged = download_newest(trial, tmp_path / "b")
    assert found == tmp_path / "b" / "checkpoint_000002"
    if name == "checksums.json" and change is delete:  # as if its upload had been interrupted
        assert not damaged
    else:
        assert len(damaged) == 1 and damaged[0].startswith("checkpoint_000004 is damaged (")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoint_000002"]


def test_half_an_upload_is_no_checkpoint(trial: BucketFolder, tmp_path: Path) -> None:
    """Neither one of a new step, nor one that replaces another of the same step."""
    uploaded(trial, tmp_path / "a", 2, 4)
    again = keep_checkpoint(tmp_path / "again", 4, writer(5.0))
    (again / "checksums.json").unlink()  # the upload ends where this is opened
    with pytest.raises(CheckpointNotWritten, match=r"checksums\.json"):
        upload_checkpoint(again, trial)
    trial.write("checkpoint_000006/state.pt", b"half")
    assert download_newest(trial, tmp_path / "b") == (tmp_path / "b" / "checkpoint_000002", [])

    assert uploaded(trial, tmp_path / "c", 4) == ["checkpoint_000002", "checkpoint_000004"]  # the next one tidies up
    assert download_newest(trial, tmp_path / "b")[0] == tmp_path / "b" / "checkpoint_000004"


def test_a_bucket_that_cannot_be_written_is_named(endpoint: str, tmp_path: Path) -> None:
    nowhere = BucketFolder(bucket_uri(endpoint, "run/trials/t000", "no-such-bucket"), patient=False)
    checkpoint = keep_checkpoint(tmp_path, 2, writer(2.0))
    with pytest.raises(
        CheckpointNotWritten, match=r"^s3://no-such-bucket/run/.*: cannot be written \(.*NO_SUCH_BUCKET"
    ):
        upload_checkpoint(checkpoint, nowhere)


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", ".hidden", "a/b"])
def test_a_checkpoint_of_somebody_else_writes_no_other_files(trial: BucketFolder, tmp_path: Path, name: str) -> None:
    uploaded(trial, tmp_path / "a", 2)
    manifest = json.loads(trial.read("checkpoint_000002/checksums.json") or b"")
    manifest["sha256"][name] = "0" * 64
    trial.write("checkpoint_000002/checksums.json", json.dumps(manifest).encode())
    found, damaged = download_newest(trial, tmp_path / "b")
    assert found is None and "is no plain name of a file" in damaged[0]
    assert not list((tmp_path / "b").iterdir())


def test_a_trial_continues_on_another_node_from_the_one_before(
    trial_of: Callable[[str], TrialSettings], trial: BucketFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = trial_of("pixel_diffusion")
    stages = tuple(needed_stages(settings, str(tmp_path / "stores"), method_class(settings.method).columns(settings)))
    make_stores(settings, stages)
    head = str(tmp_path / "only-on-the-head" / "trials" / "t000")
    job = Job(settings, stages, ("val/psnr",), Workers(), head, str(tmp_path), bucket=trial.uri)

    def trained(node: str) -> list[dict[str, Any]]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / node))
        sent: list[dict[str, Any]] = []
        train_job(job, World(), sent.append)
        assert not list((tmp_path / node).glob("**/checkpoint_*")) and not Path(head).exists()
        return sent

    first = trained("a")
    assert [row[CHECKPOINT] for row in first] == ["checkpoint_000003", "checkpoint_000006"]
    garble(trial, "checkpoint_000006/state.pt")
    second = trained("b")
    assert [(row["step"], row[REPEATED]) for row in second] == [(3, True), (6, False)]
    assert second[0][CHECKPOINT] == "checkpoint_000003"
    assert "checkpoint_000006 is damaged (the content of state.pt has changed" in second[0][DAMAGED][0]
    assert second[-1]["val/psnr"] == first[-1]["val/psnr"]
