"""The log of a trial in a bucket: of all nodes on which it ran, and while it runs. On a real S3 server."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.buckets import bucket_uri, endpoint
from trainables.common.buckets import BucketFolder
from trainables.training import bucket_log
from trainables.training.bucket_log import shipped_output
from trainables.training.trial_log import LIMIT

__all__ = ["endpoint"]


@pytest.fixture
def trial(endpoint: str, tmp_path: Path) -> BucketFolder:
    return BucketFolder(bucket_uri(endpoint, f"{tmp_path.name}/trials/t000"))


def text_of(trial: BucketFolder, name: str = "log.txt") -> str:
    return (trial.read(name) or b"").decode()


def test_log_has_what_a_trial_printed_on_each_of_its_nodes(trial: BucketFolder) -> None:
    print("before")
    with suppress(RuntimeError), shipped_output(trial):
        print("on the first node")
        raise RuntimeError("no such tensor")
    print("between")
    with shipped_output(trial):
        print("on the second node")
    with shipped_output(trial, rank=1):
        print("of the second worker")
    lines = text_of(trial).splitlines()
    assert sum(" UTC: starts on host " in line for line in lines) == 2
    kept = ["on the first node", "RuntimeError: no such tensor", "on the second node"]
    assert [line for line in lines if line in ("before", *kept, "between")] == kept and "Traceback" in text_of(trial)
    assert text_of(trial, "log-1.txt").endswith("of the second worker\n")
    assert set(trial.objects()) == {"log.txt", "log-1.txt"}


def test_log_is_in_the_bucket_while_the_trial_runs(trial: BucketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_log, "FIRST", 0.02)
    monkeypatch.setattr(bucket_log, "EVERY", 0.02)
    with shipped_output(trial):
        for line in ("first", "second"):
            print(line)
            deadline = time.monotonic() + 30
            while not text_of(trial).endswith(f"{line}\n"):
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_log_keeps_the_newest_mebibyte(trial: BucketFolder) -> None:
    trial.write("log.txt", b"x" * (2 * LIMIT))  # of somebody else
    with shipped_output(trial):
        print("y" * (LIMIT // 2 - 200))
    assert "xx" not in text_of(trial)
    with shipped_output(trial):
        print("z" * (LIMIT // 2))
    assert len(text_of(trial)) <= LIMIT and text_of(trial).endswith("z\n")


@pytest.mark.parametrize("host", ["", "127.0.0.1:9"])
def test_bucket_that_does_not_answer_costs_the_log_only(endpoint: str, host: str) -> None:
    nowhere = BucketFolder(bucket_uri(host or endpoint, "trials/t000", "no-such-bucket"))
    with shipped_output(nowhere):
        goes_on = True
    assert goes_on


def test_no_temporary_folder_costs_the_log_only(trial: BucketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    goes_on = []
    with shipped_output(trial):
        goes_on.append(True)
    assert goes_on and not trial.objects()
    with pytest.raises(ValueError, match="of the trial") as raised, shipped_output(trial):
        raise ValueError("of the trial")
    assert raised.value.__context__ is None  # else a full TMPDIR would seem to be its cause
