"""A sweep on a running Ray cluster: one that grows with the trials, and one of fixed size."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from sweeps.planning.run_bucket import run_to_read
from sweeps.planning.settings import SweepSettings
from sweeps.recording.progress import logger
from sweeps.recording.tables import RunTables, read_rows
from sweeps.running import ray_cluster
from sweeps.running.capacity import may_grow, trials_at_once
from sweeps.running.cluster_watch import waiting_for
from sweeps.running.failing_nodes import FailingNodes
from sweeps.running.ray_cluster import connected
from tests.helpers.autoscaler import growing_cluster
from tests.helpers.buckets import bucket_uri, endpoint
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_port
from tests.helpers.sweep import LIGHT, RATES, RunningSweep, light, only_run, run_sweep, sets, steps, trials
from tests.helpers.tuning import run_trials
from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError
from trainables.data.ray_pipeline import check_shared
from trainables.training.job import Workers

__all__ = ["endpoint"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # many processes per test, also on busy machines


@pytest.fixture
def fixed() -> Iterator[Cluster]:
    """A head and a worker with one CPU each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def test_a_cluster_of_fixed_size_runs_what_fits(fixed: Cluster, tmp_path: Path) -> None:
    def settings(cpus: float) -> SweepSettings:
        return SweepSettings("x", workers_per_trial=1, cpus_per_worker=cpus, gpus_per_worker=0, address=fixed.address)

    with connected(settings(1), 9) as at_once:
        assert at_once == 2 and not may_grow()
        alone, groups = (FailingNodes(Workers(count), lambda reason: None) for count in (1, 2))
        assert (alone.room(), groups.room()) == (2, 1)
        added = fixed.add_node(num_cpus=2)
        deadline = time.monotonic() + 60
        while (alone.room(), groups.room()) != (4, 2):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert waiting_for() == ""
        large = placement_group([{"CPU": 3}])
        while (said := waiting_for()) != "3 nodes; waiting for room for 1 worker of 3 CPU; no node is starting":
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        remove_placement_group(large)
        known = ray.nodes()
        with patch.object(ray, "nodes", lambda: known):  # one of them leaves right after that look
            fixed.remove_node(added)
            check_shared(str(tmp_path), "--results", "one that all share")
    message = "workers of 3 CPUs each do not fit; the 2 nodes have 2 CPUs together"
    with pytest.raises(InputError, match=message), connected(settings(3), 9):
        pass
    assert not ray.is_initialized()


def test_nodes_that_come_and_go_while_a_cluster_is_asked_are_said(
    fixed: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep asks for places, which makes a cluster grow; a fast one has grown before the answer."""

    def asked_slowly(workers: Workers, wanted: int) -> int:
        fixed.add_node(num_cpus=3)
        (idle,) = (node for node in fixed.worker_nodes if node.node_id == other)
        fixed.remove_node(idle)
        fixed.wait_for_nodes()
        return trials_at_once(workers, wanted)

    (other,) = (node.node_id for node in fixed.worker_nodes)
    settings = SweepSettings("x", workers_per_trial=1, cpus_per_worker=1, gpus_per_worker=0, address=fixed.address)
    logger.addHandler(caplog.handler)
    logger.setLevel("INFO")
    try:
        with patch.object(ray_cluster, "trials_at_once", asked_slowly), connected(settings, 9) as at_once:
            assert at_once == 4
            deadline = time.monotonic() + 60
            while not ("joined; 2 nodes" in caplog.text and "is gone; 2 nodes" in caplog.text):
                assert time.monotonic() < deadline, caplog.text
                time.sleep(0.2)
    finally:
        logger.removeHandler(caplog.handler)


def assert_token_refused(run: subprocess.CompletedProcess[str], expected: str) -> None:
    assert run.returncode == 2, run.stdout + run.stderr
    *earlier, line = run.stderr.splitlines()
    assert earlier in ([], [f"connecting to Ray at {line.split()[3].rstrip(':')}"])  # no line of Ray's C++ log
    assert "the cluster's token is missing or wrong here" in line
    assert expected in line and "RAY_AUTH_TOKEN" in line and "~/.ray/auth_token" in line


def nodes(address: str) -> int:
    """How many a cluster has now. In a process of its own: Ray reads the token once per process."""
    code = "import sys; from trainables.common.cluster import answering_nodes; print(len(answering_nodes(sys.argv[1])))"
    return int(subprocess.check_output([sys.executable, "-c", code, address], cwd=ROOT, text=True))


def power_off_a_machine(address: str) -> None:
    """Kills all processes of a worker of `growing_cluster` on which a trial runs, at once."""
    disks = f"/tmp/grow-{address.rpartition(':')[2]}/"
    raylets = [process for process in psutil.process_iter(["name", "cmdline"]) if process.info["name"] == "raylet"]
    for raylet in raylets:
        family = raylet.children(recursive=True)
        trial = any(process.name().startswith("ray::ImplicitFunc") for process in family)
        if trial and any(disks in part for part in raylet.info["cmdline"]):
            for process in (raylet, *family):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return
    raise AssertionError("no trial runs")


def test_a_sweep_makes_a_cluster_without_workers_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To three workers; Ctrl-C, a resume, and the loss of a worker; then it shrinks to its head again."""
    results = tmp_path / "results"
    with growing_cluster(tmp_path, workers=3) as (address, token):
        flags = [
            *light(results, tmp_path / "store", training__reports=10),
            *("--trials", "3", "--max-steps", "820", "--confirm", "0", "--address", address),
        ]
        with monkeypatch.context() as without:
            without.setenv("HOME", str(tmp_path))  # Ray looks there for a token
            for name in token:
                without.delenv(name, raising=False)
            assert_token_refused(run_sweep(*flags), "RAY_AUTH_MODE=token (it is not set)")
        for name, value in token.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        wrong = [sys.executable, "-m", "cluster.wait_for_nodes", address, "1"]
        waited = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert_token_refused(waited, "RAY_AUTH_MODE=token (it is 'token')")
        monkeypatch.setenv("RAY_AUTH_TOKEN", token["RAY_AUTH_TOKEN"])
        too_large = run_sweep(*flags, "--cpus-per-worker", "2")
        assert too_large.returncode == 2, too_large.stdout + too_large.stderr
        assert "workers of 2 CPUs each do not fit at its largest size" in too_large.stderr
        assert not results.exists()
        assert nodes(address) == 1
        first = RunningSweep(*flags)
        first.wait_for("joined; 4 nodes")
        first.wait_for("t00[012] step 82/820")
        first.interrupt()
        assert first.wait() == 130, first.text
        second = RunningSweep("--resume", str(only_run(results)), "--address", address)
        started = r"t00[012] (continues|starts over) at step"
        second.wait_for(started, 3)  # each on a machine of its own
        assert nodes(address) == 4
        power_off_a_machine(address)
        second.wait_for(started, 4)
        assert second.wait() == 0, second.text
        assert "Traceback" not in first.text + second.text
        deadline = time.monotonic() + 120
        while nodes(address) > 1:
            assert time.monotonic() < deadline
            time.sleep(1)
    run = only_run(results)
    ended = trials(run)
    assert {name: row["status"] for name, row in ended.items()} == dict.fromkeys(("t000", "t001", "t002"), "finished")
    assert {tuple(steps(run, name)) for name in ended} == {tuple(range(82, 821, 82))}
    assert len([row for row in read_rows(run / "leaderboard.parquet") if row["kind"] == "control"]) == 1
    assert (run / "best" / "weights.safetensors").exists()
    log = (run / "sweep.log").read_text(encoding="utf-8")
    assert log.count(" joined; ") >= 3 and log.count("joined; 4 nodes") >= 1  # the lost one may be replaced


def test_a_growing_cluster_replaces_the_only_node_if_trials_fail_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"

    def trial(config: dict[str, Any]) -> None:
        node = ray.get_runtime_context().get_node_id()
        if not first.exists():
            first.write_text(node)
        if first.read_text() == node:
            raise FileNotFoundError("no driver on this machine")
        tune.report({"step": 9, "val/psnr": 1.0, "where": node})

    stops = list[str]()
    with growing_cluster(tmp_path, workers=1, with_token=False) as (address, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = SweepSettings("x", workers_per_trial=1, cpus_per_worker=1, gpus_per_worker=0, address=address)
        with connected(settings, 1):
            nodes = FailingNodes(Workers(1), stops.append, limit=1)
            (result,) = run_trials(trial, nodes, tmp_path / "tune", 1, tries=2)
    assert not stops
    assert result.error is None and result.metrics["where"] != first.read_text()


def test_a_sweep_whose_head_is_lost_goes_on_elsewhere_from_the_bucket(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how; then it continues on another machine, which has none of the first one's files and no cluster."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "12")  # a fifth of Ray's own
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    results = BucketFolder(bucket_uri(endpoint, "results"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    address = cluster.address  # None after the shutdown
    try:
        sweep = RunningSweep(
            *("--space", RATES, "--results", results.uri, "--store", str(tmp_path / "store"), "--perceptual", "none"),
            *("--trials", "2", "--max-steps", "4", "--confirm", "0", "--address", address),
            *sets(LIGHT, training__reports=2),
        )
        sweep.wait_for("controls   loading")  # the run exists, and the driver waits for Ray
        (head,) = cluster.head_node.all_processes["gcs_server"]
        head.process.kill()
        began = time.monotonic()
        assert sweep.wait() == 1, sweep.text
        assert time.monotonic() - began < 12, "Ray's library would have ended it"
    finally:
        cluster.shutdown()
    after = sweep.lines[next(number for number, line in enumerate(sweep.lines) if "stopped:" in line) :]
    assert len(after) == 2, sweep.text
    assert f"stopped: the cluster's head {address} has not answered for " in after[0]
    (copy,) = (tmp_path / "first" / "restoration-sweeps").glob("*/small_rates/*")
    run = results.join("small_rates").join(copy.name)
    assert " continue with: " in after[1] and f" --resume '{run.uri}'" in after[1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    done = run_sweep("--resume", run.uri, "--address", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = RunTables(run_to_read("RUN", run.uri)).load().leaderboard
    assert {(row["status"], row["steps"]) for row in rows if row["kind"] == "trial"} == {("finished", 4)}


def test_a_sweep_runs_as_a_job_that_ray_up_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job submit --working-dir . -- python run_sweep.py --address auto ...`, with the code of this checkout."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else `auto` uses a token of this machine, if there is one
    # The job's `python` is the first on the head's PATH: on a node of `ray up`, the one with our packages.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    # The agent's own port may be that of another Ray of this machine; without an agent no job starts.
    ports = {"dashboard_port": free_port(), "dashboard_agent_listen_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, **ports})
    try:
        words = light(tmp_path / "results", tmp_path / "store", training__reports=1)
        words += ["--trials", "1", "--max-steps", "4", "--confirm", "0", "--address", "auto"]
        job = ["ray", "job", "submit", "--address", f"http://{cluster.head_node.webui_url}", "--working-dir", "."]
        command = [*job, "--", "python", "run_sweep.py", *words]
        deadline = time.monotonic() + 120
        while True:
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
            if "No available agent to submit job" not in ran.stderr or time.monotonic() > deadline:  # it still starts
                break
            time.sleep(1)
    finally:
        cluster.shutdown()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout
    assert trials(only_run(tmp_path / "results"))["t000"]["status"] == "finished"
