"""Real clusters with a node on which every trial fails, and with one that will be taken back."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster

from sweeps.planning.settings import SweepSettings
from sweeps.recording.progress import log_to, logger
from sweeps.recording.recorder import MAX_FAILURES, Recorder, RecorderSettings
from sweeps.recording.tables import RunTables
from sweeps.running.failing_nodes import FailingNodes
from sweeps.running.ray_cluster import connected
from sweeps.running.scheduler import SweepScheduler
from sweeps.trial_config import GIVEN, ID, LABEL, PARAMETERS, SEED
from tests.helpers.metadata import Metadata, metadata_server
from tests.helpers.sweep import light_trial
from tests.helpers.tuning import run_trials
from tests.sweeps.recording.test_tables import measured
from trainables.common.errors import InputError
from trainables.data.prepare import make_stores
from trainables.data.ray_pipeline import check_shared
from trainables.data.stages.needed import needed_stages
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.training.job import Job, Workers
from trainables.training.launch import NODES, drain, launch, trial_resources
from trainables.training.preemption import Notice
from trainables.training.results import CHECKPOINT, REPEATED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # many processes, also on busy machines
WORKERS = Workers(count=1)
REASON = "no weights on this machine"
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


@pytest.fixture(scope="module")
def disks() -> Iterator[Path]:
    """The folder in which each node but the head has one of its own, as it would on its own machine. In a shared one,
    each node would replace the running job's code below the others."""
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as folder:  # Ray's sockets need a short path
        yield Path(folder)


def hide(folder: Path) -> None:
    """Hides what is in a folder from this thread and the processes that it starts. Only root may do so."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)


@pytest.fixture(scope="module")
def cluster(disks: Path) -> Iterator[Cluster]:
    """A head and a broken worker, with one CPU each. The worker does not see the folder `hidden` of the disks, and its
    environment names a proxy, through which Ray must not connect.
    """
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    broken = {"BROKEN": "1"} | dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    (disks / "hidden").mkdir()

    def add_broken() -> None:
        if os.geteuid() == 0:
            hide(disks / "hidden")
        made.add_node(num_cpus=1, resources={"broken": 1}, env_vars=broken, temp_dir=str(disks / "broken"))

    with ThreadPoolExecutor(1) as thread:  # the node ends with the thread that has started it
        try:
            with patch("ray._private.utils.set_sigterm_handler"):  # for main threads only
                thread.submit(add_broken).result()
            made.wait_for_nodes()
            yield made
        finally:
            made.shutdown()


def settings_of(cluster: Cluster) -> SweepSettings:
    return SweepSettings("x", workers_per_trial=1, cpus_per_worker=1, gpus_per_worker=0, address=cluster.address)


def test_node_on_which_every_trial_fails_is_left_out(cluster: Cluster, tmp_path: Path) -> None:
    def trial(config: dict[str, Any]) -> None:
        with open(tmp_path / "tries", "a", encoding="utf-8") as tries:
            tries.write(f"{config[ID]} {'BROKEN' in os.environ}\n")
        if "BROKEN" in os.environ:
            raise FileNotFoundError(REASON)
        tune.report({"step": 1, "val/psnr": 1.0})
        time.sleep(1)
        tune.report({"step": 9, "val/psnr": 1.0, "where": ray.get_runtime_context().get_node_id()})

    def fail(config: dict[str, Any]) -> None:
        raise FileNotFoundError(REASON)

    file, stops = log_to(tmp_path / "sweep.log"), list[str]()
    try:
        with connected(settings_of(cluster), 2) as concurrent:
            assert concurrent == 2
            ended = run_trials(trial, FailingNodes(WORKERS, stops.append), tmp_path / "one", 6, tries=2)
            assert [result.error for result in ended] == [None] * 6
            assert {result.metrics["where"] for result in ended} == {cluster.head_node.node_id}
            assert not stops
            run_trials(fail, FailingNodes(WORKERS, stops.append, limit=1), tmp_path / "other", 2, tries=1)
    finally:
        logger.removeHandler(file)
        file.close()
    tries = (tmp_path / "tries").read_text(encoding="utf-8").split("\n")
    assert len([line for line in tries if line.endswith("True")]) == 2  # one try of two trials
    log = (tmp_path / "sweep.log").read_text(encoding="utf-8")
    address = cluster.head_node.node_ip_address
    expected = rf"{address} is left out: t00\d and t00\d failed on it, the last one with: FileNotFoundError: {REASON}"
    assert len(re.findall(expected, log)) == 1
    assert stops == [
        f"trials failed on every node, and all are left out; the last one said: FileNotFoundError: {REASON}"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide a folder from some processes")
def test_node_that_does_not_see_the_results_is_left_out(
    cluster: Cluster, disks: Path, small: TrialSettings, tmp_path: Path
) -> None:
    """At the start of a sweep it is refused; here it joins later."""
    run = disks / "hidden" / "run"
    (run / "trials").mkdir(parents=True)
    job = Job(small, (), (), WORKERS, str(run / "trials" / "t000"), str(run / ".ray"), on_cluster=True)

    def trial(config: dict[str, Any]) -> None:
        if "BROKEN" in os.environ:
            launch(job)
        tune.report({"step": 9, "val/psnr": 1.0, "where": ray.get_runtime_context().get_node_id()})

    file, stops = log_to(tmp_path / "sweep.log"), list[str]()
    nodes = FailingNodes(WORKERS, stops.append)
    try:
        with connected(settings_of(cluster), 1):
            check_shared(str(tmp_path), "--results", "one that all share")
            with pytest.raises(
                InputError, match=r"--results \S+: 1 of the cluster's 2 nodes do not see it: [\d.]+; give"
            ):
                check_shared(str(run), "--results", "one that all share")
            on_broken = tune.PlacementGroupFactory([{"CPU": 1, "broken": 1}])  # the first try
            (result,) = tune.Tuner(
                tune.with_resources(trial, on_broken),
                param_space={ID: "t000", GIVEN: True},
                tune_config=tune.TuneConfig(scheduler=SweepScheduler("val/psnr", "max", 9, 9, 3.0, nodes=nodes)),
                run_config=tune.RunConfig(name="tune", storage_path=job.scratch, callbacks=[nodes], verbose=0),
            ).fit()
    finally:
        logger.removeHandler(file)
        file.close()
    assert result.error is None and result.metrics["where"] == cluster.head_node.node_id  # although none may fail
    assert not stops
    log = (tmp_path / "sweep.log").read_text(encoding="utf-8")
    said = f"--results: node {socket.gethostname()} does not see {run}; all nodes must share it"
    assert log.count(f"{cluster.head_node.node_ip_address} is left out: {said}") == 1
    assert (Path(result.path) / "error.txt").read_text(encoding="utf-8").rstrip().endswith(f"OnUnfitNode: {said}")


def until_repeated(job: Job, resources: tune.PlacementGroupFactory, nodes: FailingNodes) -> Any:
    """Trains one trial, which may never fail, until it has gone on from a checkpoint; returns Tune's result."""
    scheduler = SweepScheduler("val/psnr", "max", 10**9, 10**9, 3.0, nodes=nodes)
    (result,) = tune.Tuner(
        tune.with_resources(lambda config: launch(job), resources),
        param_space={ID: "t000", GIVEN: True},
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(
            name="tune", storage_path=job.scratch, callbacks=[nodes], stop={REPEATED: True}, verbose=0
        ),
    ).fit()
    return result


class Reclaimed(FailingNodes):
    """A node gets a notice when a trial has reported from it.

    Args:
        servers: of each node.
    """

    def __init__(self, servers: Mapping[str, Metadata]) -> None:
        super().__init__(WORKERS, lambda reason: None)
        self.servers, self.seen = servers, list[tuple[str, int]]()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        node, _ = self._running[trial.config[ID]]
        self.servers[node].notice = True
        self.seen.append((node, result["step"]))


def test_trial_leaves_a_machine_that_will_be_taken_back(
    cluster: Cluster, disks: Path, small: TrialSettings, store_root: Path, tmp_path: Path
) -> None:
    """Both other nodes ask a metadata server. The one on which the trial reports first gets a notice."""
    settings = override(small, {"training.max_steps": 100_000, "training.reports": 4_000})
    stages = tuple(needed_stages(settings, store_root, method_class(settings.method).columns(settings)))
    make_stores(settings, stages)
    folder = tmp_path / "trials" / "t000"
    job = Job(settings, stages, ("val/psnr",), WORKERS, str(folder), str(tmp_path), on_cluster=True)
    file = log_to(tmp_path / "sweep.log")
    with metadata_server() as first, metadata_server() as second:
        servers = {
            cluster.add_node(
                num_cpus=1, resources={"spot": 1}, env_vars=server.variables, temp_dir=str(disks / name)
            ).node_id: server
            for name, server in (("first", first), ("second", second))
        }
        connection = SweepSettings(
            "x", workers_per_trial=1, cpus_per_worker=1, gpus_per_worker=0, address=cluster.address
        )
        with connected(connection, 1):
            nodes = Reclaimed(servers)
            result = until_repeated(job, tune.PlacementGroupFactory([{"CPU": 1, "spot": 1}]), nodes)
    logger.removeHandler(file)
    file.close()
    assert (tmp_path / "sweep.log").read_text(encoding="utf-8").count(" will be taken away, and gets no more work") == 1
    assert result.error is None  # although no failure is allowed
    (before, *_), (after, again) = nodes.seen[0], nodes.seen[-1]
    assert {before, after} == servers.keys()
    last = nodes.seen[-2][1]
    assert again == last  # the last report, sent once more
    kept = int(max(folder.glob("checkpoint_*")).name.rpartition("_")[2])
    assert last <= kept < last + settings.training.report_every  # the notice may come with a report
    text = (folder / "log.txt").read_text(encoding="utf-8")
    assert text.count(" UTC: starts on host ") == 2 and "MachineLeaving: the machine will be taken away" in text


class OneDrained(FailingNodes):
    """The node of the second worker is drained when a group has reported; no notice is asked for."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(workers, lambda reason: None)
        self.seen = list[tuple[tuple[str, ...], int]]()

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.seen.append((tuple(result[NODES]), result["step"]))
        if len(self.seen) == 1:
            drain(result[NODES][1], Notice("test", time.time() + 300))


def test_group_leaves_a_machine_that_will_be_taken_back(
    cluster: Cluster, disks: Path, store_root: Path, tmp_path: Path
) -> None:
    settings = light_trial({"training.max_steps": 100_000, "training.reports": 2_000})
    workers = Workers(count=2)
    stages = tuple(needed_stages(settings, store_root, method_class(settings.method).columns(settings)))
    make_stores(settings, stages)
    names = ("third", "fourth", "fifth")
    added = {cluster.add_node(num_cpus=1, temp_dir=str(disks / name)).node_id for name in names}
    folder = tmp_path / "trials" / "t000"
    with connected(SweepSettings("x", workers_per_trial=2, gpus_per_worker=0, address=cluster.address), 1):
        others = tuple(node["NodeID"] for node in ray.nodes() if node["NodeID"] not in added)
        job = Job(
            *(settings, stages, ("val/psnr",), workers, str(folder), str(tmp_path)), on_cluster=True, avoided=others
        )
        nodes = OneDrained(workers)
        result = until_repeated(job, trial_resources(workers), nodes)
    assert result.error is None  # although no failure is allowed
    (before, _), (after, again) = nodes.seen[0], nodes.seen[-1]
    assert {*before, *after} == added and before[1] not in after
    # The last report, sent once more; perhaps the driver had not heard it: the first worker may leave right after it.
    assert again - nodes.seen[-2][1] in (0, settings.training.report_every)
    kept = int(max(folder.glob("checkpoint_*")).name.rpartition("_")[2])
    assert again <= kept < again + settings.training.report_every  # the notice may come with a report
    text = (folder / "log.txt").read_text(encoding="utf-8")
    assert text.count(" UTC: starts on host ") == 2 and "MachineLeaving: the machine will be taken away" in text


def test_trial_that_is_killed_after_each_checkpoint_finishes(cluster: Cluster, tmp_path: Path) -> None:
    """It dies more often than a trial may without progress, before its first report."""
    reports = {step: measured(step, 0.3) | {CHECKPOINT: f"checkpoint_{step:06d}"} for step in (80, 90)}
    folder = tmp_path / "trials" / "t000"

    def trial(config: dict[str, Any]) -> None:
        done = max((int(path.name.rpartition("_")[2]) for path in folder.glob("checkpoint_*")), default=0)
        for step in range(done + 20, 80, 20):
            (folder / f"checkpoint_{step:06d}").mkdir()
            (folder / f"checkpoint_{step:06d}" / "checksums.json").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        for result in reports.values():
            tune.report(result)

    recorder = Recorder(RecorderSettings(str(tmp_path), ("val/psnr",), {}, 90, 1, 1, 1, seed=0, shown=("val/psnr",)))
    config = {ID: "t000", GIVEN: True, LABEL: "", SEED: 0, PARAMETERS: {}}
    with connected(settings_of(cluster), 1):
        (result,) = tune.Tuner(
            tune.with_resources(trial, trial_resources(WORKERS)),
            param_space=config,
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(tmp_path / ".ray"),
                callbacks=[recorder],
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=0,
            ),
        ).fit()
    assert result.error is None
    (row,) = RunTables(tmp_path).load().leaderboard
    assert (row["status"], row["steps"]) == ("finished", 90)
    errors = (Path(result.path) / "error.txt").read_text(encoding="utf-8")
    assert errors.count("Failure # ") == MAX_FAILURES + 1


def test_messages_of_ray_are_in_the_log_only(
    cluster: Cluster, disks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The machine of a node is lost; another process on it sends the last lines of its log."""
    node = cluster.add_node(num_cpus=0, temp_dir=str(disks / "lost"))
    file = log_to(tmp_path / "sweep.log")
    try:
        with connected(settings_of(cluster), 1):
            logger.info("seen by all")
            cluster.remove_node(node, allow_graceful=False)
            deadline = time.monotonic() + 60
            while "Raylet is terminated" not in (log := (tmp_path / "sweep.log").read_text(encoding="utf-8")):
                assert time.monotonic() < deadline, log
                time.sleep(0.2)
    finally:
        logger.removeHandler(file)
        file.close()
    shown = capfd.readouterr()
    assert "seen by all" in shown.err and "Raylet" not in shown.err + shown.out
