"""A sweep on a running Ray cluster: Ray's test cluster with two nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from sweeps.recording.tables import read_rows
from tests.helpers.sweep import SPACE, only_run, run_sweep, sets, store, trials

__all__ = ["store"]
pytestmark = pytest.mark.timeout(900)  # many processes per test, also on busy machines


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and a worker with one CPU each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


@pytest.mark.slow
def test_a_sweep_on_a_cluster(cluster: Cluster, tmp_path: Path, store: Path) -> None:
    results = tmp_path / "results"
    flags = [
        *("--space", SPACE, "--results", str(results), "--store", str(store), "--perceptual", "none"),
        *("--trials", "3", "--max-steps", "4", *sets(training__reports=2), "--address", cluster.address),
        *("--confirm", "1", "--seeds", "2"),
    ]
    too_many = run_sweep(*flags, "--workers-per-trial", "2", "--cpus-per-worker", "2")
    assert too_many.returncode == 2
    assert "workers of 2 CPUs each do not fit; the 2 nodes have 2 CPUs together" in too_many.stderr
    assert not results.exists()

    done = run_sweep(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(results)
    assert {name: row["status"] for name, row in trials(run).items()} == dict.fromkeys(
        ("t000", "t001", "t002"), "finished"
    )
    assert len([row for row in read_rows(run / "leaderboard.parquet") if row["kind"] == "control"]) == 5
    assert (run / "best" / "weights.safetensors").exists()
