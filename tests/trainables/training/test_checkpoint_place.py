"""The checkpoints of a trial that runs: the last reported one stays beside the newest one between two reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.buckets import bucket_uri, endpoint
from tests.trainables.training.test_checkpoint_folders import writer
from trainables.common.buckets import BucketFolder
from trainables.training.checkpoint_place import CheckpointPlace

__all__ = ["endpoint"]


@pytest.mark.parametrize("in_bucket", [False, True])
def test_last_reported_checkpoint_stays(endpoint: str, tmp_path: Path, in_bucket: bool) -> None:
    uri = bucket_uri(endpoint, f"{tmp_path.name}/trials/t000") if in_bucket else ""

    def there() -> list[int]:
        names = BucketFolder(uri).objects() if uri else [path.name for path in (tmp_path / "t000").iterdir()]
        return sorted({int(name.split("/")[0].removeprefix("checkpoint_")) for name in names})

    place = CheckpointPlace(tmp_path / "t000", uri)
    for step, between, expected in (
        (10, False, [10]),
        (12, True, [10, 12]),
        (14, True, [10, 14]),
        (20, False, [14, 20]),
        (22, True, [20, 22]),
    ):
        place.keep(step, writer(float(step)), between)
        assert there() == expected
    again = CheckpointPlace(tmp_path / "t000", uri)  # the trial is started again and sends the report of its checkpoint
    found, damaged = again.newest()
    assert found == tmp_path / "t000" / "checkpoint_000022" and not damaged
    again.keep(24, writer(24.0), between=True)
    assert there() == [22, 24]
    again.clear()
    assert (tmp_path / "t000").exists() != in_bucket
