"""A run in a bucket: its lease, its working copy, and what is refused. On a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.command_line import main
from sweeps.planning import lease as lease_module
from sweeps.planning.lease import EXPIRES, LEASE, Lease
from sweeps.planning.plan import default_store
from sweeps.planning.results_place import check_bucket_results
from sweeps.planning.run_bucket import RunBucket, place_of, run_to_read, working_copy
from sweeps.planning.run_folder import reopen_run
from sweeps.planning.settings import SweepSettings
from tests.helpers.buckets import BUCKET, bucket_uri, endpoint
from trainables.common.buckets import BucketFolder, check_bucket_works
from trainables.common.errors import InputError
from trainables.pretrained.fetched import finished_at
from trainables.pretrained.shipped import ASSETS

__all__ = ["endpoint"]


@pytest.fixture
def run(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BucketFolder:
    """The folder of a run that has a record and a table, in results of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lease_module, "SETTLE", 0.05)
    folder = BucketFolder(bucket_uri(endpoint, tmp_path.name)).join("space").join("run")
    folder.write("settings.yaml", b"command: {}\n")
    folder.write("events.jsonl", b"one\n")
    return folder


@pytest.fixture
def held(run: BucketFolder) -> Iterator[RunBucket]:
    bucket = RunBucket(run)
    bucket.fetch()
    yield bucket
    bucket.close()


def another(run: BucketFolder, **changes: object) -> None:
    """Writes a lease as a driver of another machine does."""
    content = {"holder": "process 7 on other", "process": 7, "machine": "other", "token": "1"}
    run.write(LEASE, json.dumps({**content, **changes}).encode())


def test_second_driver_is_refused_until_the_first_gives_the_run_back(run: BucketFolder) -> None:
    first = Lease(run)
    with pytest.raises(InputError) as refused:
        Lease(run)
    line = str(refused.value)
    assert line.startswith(f"{run}: in use by a running sweep (process {os.getpid()} on ") and "\n" not in line
    assert "endpoint_override" not in line
    first.release()
    assert LEASE not in run.objects()
    Lease(run).release()


def test_lease_of_a_dead_driver_expires(run: BucketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    another(run)
    with pytest.raises(InputError, match=r"process 7 on other, seen \d s ago\).*resumed in 2 min"):
        Lease(run)
    monkeypatch.setattr(lease_module, "EXPIRES", -1.0)
    Lease(run).release()


def test_dead_driver_of_this_machine_is_known_at_once(run: BucketFolder) -> None:
    code = (
        "import os, sys; from sweeps.planning.lease import Lease; from trainables.common.buckets import BucketFolder;"
        "Lease(BucketFolder(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, run.uri], check=False)
    assert killed.returncode == -9 and LEASE in run.objects()
    Lease(run).release()


def test_driver_whose_run_was_taken_over_stops(run: BucketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW", 0.05)
    told: list[str] = []
    lease = Lease(run)
    lease.when_lost(told.append)
    another(run)
    lease._thread.join(20)
    assert told == [f"{run}: process 7 on other has taken over this run"] == [lease.lost]
    lease.release()
    assert json.loads(run.read(LEASE) or b"")["token"] == "1"  # the other one keeps it


def test_of_two_drivers_at_once_one_gets_the_run(run: BucketFolder) -> None:
    """Both find no lease; the other one writes its own later."""

    class Earlier(Lease):
        def _write(self) -> None:
            super()._write()
            another(run)

    with pytest.raises(InputError, match="process 7 on other"):
        Earlier(run)


def test_what_changes_is_uploaded(held: RunBucket) -> None:
    copy = held.copy
    (copy / "events.jsonl").write_text("one\ntwo\n")
    for name in ("trials/t000/params.json", "best/weights.safetensors", "leaderboard.csv"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(name)
    held.trial("t000").write("log.txt", b"of another node")  # a trial writes its log itself
    kept_here = (".lock", ".ray/tune/state", "trials/t000/checkpoint_000002/grid.png", ".leaderboard.csv.tmp")
    kept_here += ("trials/t000/log.txt", "trials/t000/log-1.txt")
    for name in kept_here:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(name)
    held.sync()
    expected = {"settings.yaml", "events.jsonl", "trials/t000/params.json", "best/weights.safetensors", LEASE}
    expected |= {"trials/t000/log.txt"}
    assert set(held.run.objects()) == {*expected, "leaderboard.csv"}
    assert held.run.read("events.jsonl") == b"one\ntwo\n"
    assert held.trial("t000").read("log.txt") == b"of another node"

    (copy / "leaderboard.csv").unlink()
    held.sync()
    assert set(held.run.objects()) == expected


def test_a_new_run_is_one_only_when_all_of_it_is_there(
    endpoint: str, run: BucketFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver may be killed between two uploads: a run without its space would take the one of another version."""
    new = RunBucket(run.parent.join("new"))
    new.make_copy()
    for name in ("settings.yaml", "space.json", "warm_start.json"):
        (new.copy / name).write_text("{}")
    upload = BucketFolder.upload

    def ends(self: BucketFolder, path: Path, name: str) -> None:
        if name == "warm_start.json":
            raise OSError("killed")
        upload(self, path, name)

    monkeypatch.setattr(BucketFolder, "upload", ends)
    with pytest.raises(OSError, match="killed"):
        new.sync()
    monkeypatch.setattr(BucketFolder, "upload", upload)
    assert new.run.read("settings.yaml") is None
    new.sync()
    assert new.run.read("settings.yaml") == new.run.read("warm_start.json") == b"{}"
    new.close()


def test_copy_that_is_ahead_stays_and_any_other_is_made_again(run: BucketFolder) -> None:
    bucket = RunBucket(run)
    bucket.fetch()
    record = bucket.copy / "events.jsonl"
    record.write_text("one\ntwo\n")  # its driver is killed before the upload
    bucket.close()

    again = RunBucket(run)
    again.fetch()
    assert record.read_text() == "one\ntwo\n"
    again.sync()
    assert run.read("events.jsonl") == b"one\ntwo\n"
    again.close()

    (again.copy / "stale").touch()
    run.write("events.jsonl", b"one\nother\n")  # a driver of another machine went on
    third = RunBucket(run)
    third.fetch()
    assert record.read_text() == "one\nother\n" and not (third.copy / "stale").exists()
    third.close()


def test_names_outside_of_the_run_are_not_downloaded(run: BucketFolder) -> None:
    for name in ("../outside", "trials/../../outside", ".hidden"):
        run.write(name, b"x")
    copy = run_to_read("RUN", run.uri)
    assert sorted(path.name for path in copy.rglob("*") if path.is_file()) == [
        ".bucket",
        "events.jsonl",
        "settings.yaml",
    ]
    assert not list(copy.parents[2].rglob("outside"))


def test_checkpoints_of_unknown_trials_are_set_aside(held: RunBucket) -> None:
    for id in ("t000", "t001"):
        held.trial(id).write("checkpoint_000002/state.pt", id.encode())
        held.trial(id).write("params.json", b"{}")
        held.trial(id).write("log.txt", id.encode())
    assert held.set_aside(lambda id: id == "t000") == ["t001"]
    objects = set(held.run.objects())
    assert "trials/t000/checkpoint_000002/state.pt" in objects
    assert "trials/t001/checkpoint_000002/state.pt" not in objects
    assert held.run.read("unknown_trials/t001/checkpoint_000002/state.pt") == b"t001"
    logs = {name for name in objects if name.endswith("log.txt")}
    assert logs == {"trials/t000/log.txt", "unknown_trials/t001/log.txt"}


def test_working_copy_names_its_run(held: RunBucket) -> None:
    assert place_of(held.copy) == held.run.uri
    assert held.copy == working_copy(held.run) and held.copy.parts[-2:] == ("space", "run")
    with pytest.raises(InputError, match=r"working copy of a run in a bucket; expected s3://"):
        reopen_run(held.copy)


def test_what_is_no_run_is_refused_and_its_lease_given_back(endpoint: str, run: BucketFolder) -> None:
    nothing = BucketFolder(bucket_uri(endpoint, "nothing/space/run"))
    with pytest.raises(InputError, match=rf"--resume s3://{BUCKET}/nothing/space/run: not a run; expected a settings"):
        reopen_run(nothing.uri)
    assert not nothing.objects()
    with pytest.raises(InputError, match=r"RUN s3://.*: not a run"):
        run_to_read("RUN", nothing.uri)
    with pytest.raises(InputError, match=r"settings.yaml: stores is missing"):
        reopen_run(run.uri)
    assert LEASE not in run.objects()


def test_bucket_that_cannot_be_used_is_refused_in_one_line(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_bucket_works("--results", bucket_uri(endpoint, "some/results"))
    nowhere = bucket_uri(endpoint, "results", "no-such-bucket")
    assert main(["--space", "sinsr_loss_ratios", "--results", nowhere]) == 2
    out, line = capsys.readouterr()
    assert "--results s3://no-such-bucket/results/probe-" in line and line.count("\n") == 1 and not out
    assert "cannot be written" in line and "NO_SUCH_BUCKET" in line and "endpoint_override" not in line
    BucketFolder(bucket_uri(endpoint, "some/run")).write("settings.yaml", b"")
    with pytest.raises(InputError, match=rf"--results s3://{BUCKET}/some/run: this is a run"):
        check_bucket_results(bucket_uri(endpoint, "some/run"))
    with pytest.raises(InputError, match=r"--results .*speed in its query is not accepted"):
        check_bucket_works("--results", f"{bucket_uri(endpoint, 'results')}&speed=high")


@pytest.mark.parametrize(
    ("uri", "expected"),
    {
        "https://host/results": "--results https://host/results: expected a folder, or a bucket such as s3://",
        "s3:///results": "--results s3:///results: expected a folder, or a bucket",
        "s3://key:secret@bucket/results": "--results: contains credentials",
        "s3://bucket/results?secret_key=x": "--results: contains credentials",
    }.items(),
)
def test_uri_that_is_no_place_for_results_is_refused(uri: str, expected: str) -> None:
    with pytest.raises(InputError) as refused:
        SweepSettings("space", results=uri)
    assert str(refused.value).startswith(expected) and "secret@" not in str(refused.value)


def test_prepared_data_is_next_to_the_runs(endpoint: str) -> None:
    assert default_store("results") == "results/store"
    assert default_store(bucket_uri(endpoint, "results/")) == bucket_uri(endpoint, "results/store")


def test_lease_is_renewed_well_before_it_expires() -> None:
    assert 3 * lease_module.RENEW < EXPIRES


def test_removed_copy_removes_nothing_from_the_bucket(held: RunBucket) -> None:
    before = set(held.run.objects())
    shutil.rmtree(held.copy)
    with pytest.raises(InputError, match=r"the working copy of s3://.* was removed"):
        held.sync()
    assert set(held.run.objects()) == before


def test_sweep_starts_from_a_trial_of_a_run_in_a_bucket(
    run: BucketFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = ASSETS / "latent_diffusion_sample"
    line = ["--space", "fidelity_weight", "--perceptual", "none", "--dry-run", "--results", str(tmp_path / "results")]
    with pytest.raises(InputError, match=r"^--checkpoint s3://.*/run: has no settings.json; expected a finished trial"):
        finished_at("--checkpoint", run.uri)
    for path in finished.iterdir():
        run.join("best").upload(path, path.name)
    assert main([*line, "--checkpoint", run.uri]) == 0
    assert f"every trial restores with {run}\n" in capsys.readouterr().out
