"""A sweep with its results in a bucket, whose driver is killed and whose machine is lost. On a real S3 server."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.api import open_run
from sweeps.planning.run_bucket import run_to_read
from sweeps.planning.run_folder import reopen_run as open_to_resume
from sweeps.recording.tables import RunTables
from tests.helpers.buckets import bucket_uri, endpoint
from tests.helpers.paths import ROOT
from tests.helpers.sweep import LIGHT, RATES, gone, sets, steps, sweeps, trials
from trainables.common.buckets import BucketFolder
from trainables.common.devices import FAKE
from trainables.common.errors import InputError
from trainables.training.bucket_checkpoints import download_newest
from trainables.training.checkpoint_folders import damage

__all__ = ["endpoint", "sweeps"]
pytestmark = pytest.mark.timeout(900)
STEPS = [30, 60, 90, 120]


@pytest.mark.slow
def test_killed_sweep_goes_on_from_the_bucket(
    endpoint: str, tmp_path: Path, sweeps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second trial is under way when the driver is killed. Then nothing is left of the first machine's files. Each
    trial has half of a GPU that is declared and does not exist.
    """
    monkeypatch.setenv(FAKE, "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    shutil.copy(RATES, tmp_path)
    results = bucket_uri(endpoint, "some/results")
    first = sweeps(
        *("--space", str(tmp_path / "small_rates.py"), "--results", results, "--perceptual", "none"),
        *("--trials", "2", "--confirm", "0", "--max-steps", "120", "--max-concurrent", "1"),
        *sets(LIGHT, training__reports=4),
        *("--gpus-per-worker", "0.5"),
    )
    first.wait_for("t000 finished at step 120")
    first.wait_for(f"t001 step {random.choice((30, 60))}/120")  # at any moment
    time.sleep(random.uniform(0, 0.5))
    assert "each on 1 worker of 1 CPU and 0.5 GPU" in first.text
    (copy,) = (tmp_path / "first" / "restoration-sweeps").glob("*/small_rates/*")
    run = BucketFolder(results).join("small_rates").join(copy.name)
    assert any(line.endswith(str(copy)) for line in first.lines)

    with pytest.raises(InputError) as refused:  # a second driver
        open_to_resume(run.uri)
    assert str(refused.value).startswith(f"{run}: in use by a running sweep (process {first.process.pid} on ")

    # Ray's two agents wait another minute for the killed head. They hold no resources.
    processes = [process for process in first.descendants() if "Agent" not in process.name()]
    first.kill()
    first.wait()
    assert gone(processes, 20) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    before = {row["id"]: row for row in RunTables(run_to_read("RUN", run.uri)).load().leaderboard}
    assert before["t000"]["status"] == "finished" and before["t001"]["status"] == "running"
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "small_rates.py").unlink()
    # The record goes to the bucket first: a killed driver may not have uploaded what it wrote with it.
    run.delete([name for name in run.objects() if "t000/events" in name or name == "trials/t000/params.json"])

    third = sweeps("--resume", run.uri)
    assert third.wait() == 0, third.text
    assert "Traceback" not in third.text
    assert third.seen("t001 continues at step (30|60|90|120)") == 1 and not third.seen("t000 (continues|step)")
    assert not (tmp_path / "first").exists()

    (copy,) = (tmp_path / "second" / "restoration-sweeps").glob("[!r]*/small_rates/*")
    rows = trials(copy)
    assert {(row["status"], row["steps"]) for row in rows.values()} == {("finished", 120)} and len(rows) == 2
    assert rows["t000"] == {name: before["t000"].get(name) for name in rows["t000"]}  # not repeated
    # Reports of the last second before the machine was lost are lost; the checkpoint's own report is sent again.
    assert steps(copy, "t000") == STEPS and set(steps(copy, "t001")) <= set(STEPS)
    assert steps(copy, "t001")[-2:] == STEPS[-2:]

    assert all((copy / "trials" / name / "checkpoint_000120" / "validation.png").exists() for name in rows)

    # The bucket has all of it, and one whole checkpoint a trial.
    objects = set(run.objects())
    small = {name for name in objects if "/checkpoint_" not in name}
    logs = {name for name in small if name.endswith("log.txt")}  # written by the trials, straight to the bucket
    assert logs == {f"trials/{name}/log.txt" for name in rows} and not list(copy.rglob("log.txt"))
    of_second = (run.read("trials/t001/log.txt") or b"").decode()
    assert of_second.count(" UTC: starts on host ") == 2
    assert {"events.jsonl", "settings.yaml", "space.json", "leaderboard.parquet", "report/index.html"} < small
    assert {"report/answer.md", "best/weights.safetensors", "sweep.log", "trials/t001/params.json"} < small
    assert any("tfevents" in name for name in small)
    assert not {name for name in objects if name.startswith(".") or "/." in name} and "lease.json" not in objects
    assert all(run.read(name) == (copy / name).read_bytes() for name in small - logs)
    for name in rows:
        found, damaged = download_newest(run.join("trials").join(name), tmp_path / name)
        assert found == tmp_path / name / "checkpoint_000120" and not damage(found) and not damaged
        assert not {key for key in objects if key.startswith(f"trials/{name}/checkpoint_") and "_000120/" not in key}
    everything = b"".join(run.read(name) or b"" for name in small)
    assert b"secret" not in everything
    command = json.dumps(open_run(run.uri).settings["command"])
    assert "endpoint_override" in command and "AWS" not in command
    assert open_run(run.uri).trial("t001").folder.name == "checkpoint_000120"

    # The printed command reads the bucket. TensorBoard's reader takes the server's address when it is imported.
    (line,) = (line for line in third.lines if "tensorboard --logdir" in line)
    _, server, *command, place = shlex.split(line)
    assert (server, command) == (f"S3_ENDPOINT=http://{endpoint}", ["tensorboard", "--logdir"])
    code = (
        "import sys; from tests.helpers.tensorboard import Page; page = Page(sys.argv[1]); "
        "print(*(f'{name} {page.status(name)}' for name in rows), sep='\\n')"
    ).replace("rows", repr(sorted(rows)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **dict([server.split("=", 1)])}
    read = subprocess.run([sys.executable, "-c", code, place], env=environment, capture_output=True, text=True)
    assert read.stdout.splitlines() == [f"{name} STATUS_SUCCESS" for name in sorted(rows)], read.stderr
