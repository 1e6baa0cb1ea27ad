"""The checkpoints of a trial that runs: the last reported one stays beside the newest one between two reports."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import torch

from tests.helpers.buckets import bucket_uri, endpoint
from tests.trainables.training.test_checkpoint_folders import writer
from trainables.common.buckets import BucketFolder
from trainables.training.checkpoint_folders import CheckpointNotWritten
from trainables.training.checkpoint_place import CheckpointPlace
from trainables.training.reporting import NodeUnfit

__all__ = ["endpoint"]


def _broken(folder: Path) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("in_bucket", [False, True])
def test_last_reported_checkpoint_stays(endpoint: str, tmp_path: Path, in_bucket: bool) -> None:
    uri = bucket_uri(endpoint, f"{tmp_path.name}/trials/t000") if in_bucket else ""

    def there() -> list[int]:
        names = BucketFolder(uri).objects() if uri else [path.name for path in (tmp_path / "t000").iterdir()]
        return sorted({int(name.split("/")[0].removeprefix("checkpoint_")) for name in names})

    place = CheckpointPlace(tmp_path / "t000", uri)
    (tmp_path / "t000").mkdir()
    for step, between, expected in (
        (10, False, [10]),
        (12, True, [10, 12]),
        (14, True, [10, 14]),
        (20, False, [14, 20]),
        (22, True, [20, 22]),
    ):
        before = there()
        with pytest.raises((CheckpointNotWritten, NodeUnfit)):
            place.keep(step, _broken, between)
        assert there() == before
        place.keep(step, writer(float(step)), between)
        assert there() == expected
    again = CheckpointPlace(tmp_path / "t000", uri)  # the trial is started again and sends the report of its checkpoint
    found, damaged = again.newest()
    assert found == tmp_path / "t000" / "checkpoint_000022" and not damaged
    again.keep(24, writer(24.0), between=True)
    assert there() == [22, 24]
    again.clear()
    assert (tmp_path / "t000").exists() != in_bucket


@pytest.mark.parametrize("in_bucket", [False, True])
def test_full_disk_is_a_fault_of_its_node_if_checkpoints_are_in_a_bucket(tmp_path: Path, in_bucket: bool) -> None:
    """A shared folder that is full is full for all nodes."""

    def write(folder: Path) -> None:
        torch.save(torch.zeros(10_000), "/dev/full")

    place = CheckpointPlace(tmp_path / "t000", "s3://bucket/run/trials/t000" if in_bucket else "")
    expected = r"checkpoint_000010: cannot be written \("
    error, prefix = (
        (NodeUnfit, f"--results: node {socket.gethostname()}: ") if in_bucket else (CheckpointNotWritten, "")
    )
    with pytest.raises(error, match=rf"^{re.escape(prefix)}{re.escape(str(tmp_path))}/t000/{expected}"):
        place.keep(10, write)
    assert list((tmp_path / "t000").iterdir()) == []
