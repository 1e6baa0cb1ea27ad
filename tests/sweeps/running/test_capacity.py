"""What fits a cluster with the older autoscaler, as of ssh hosts. The newer one: end_to_end/test_cluster_run.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

from sweeps.planning.settings import SweepSettings
from sweeps.running import capacity
from sweeps.running.capacity import may_grow, trials_at_once
from sweeps.running.ray_cluster import connected
from trainables.common.errors import InputError
from trainables.training.job import Workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # starts Ray


@pytest.fixture(scope="module")
def one_machine() -> Iterator[None]:
    with connected(SweepSettings("x", workers_per_trial=1, gpus_per_worker=0.0), 1):
        yield
        _internal_kv_del(DEBUG_AUTOSCALING_STATUS)


def report(**changes: Any) -> None:
    """As the monitor of the older autoscaler writes it."""
    nodes = {"active_nodes": {"ray.head.default": 1}, "pending_nodes": [], "pending_launches": {}, **changes}
    _internal_kv_put(DEBUG_AUTOSCALING_STATUS, json.dumps({"autoscaler_report": nodes}))


@pytest.mark.parametrize(
    "starting", [{"pending_nodes": [["10.0.0.2", "worker", "setting-up"]]}, {"pending_launches": {"worker": 1}}]
)
def test_trials_wait_for_nodes_that_start(one_machine: None, starting: dict[str, Any]) -> None:
    report(**starting)
    assert may_grow() and trials_at_once(Workers(1, cpus=64.0), 5) == 5


def test_trial_that_fits_no_host_is_refused(one_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_PATIENCE", 1.0)
    report()
    assert trials_at_once(Workers(1), 50) == 50  # one fits
    with pytest.raises(InputError, match="workers of 1000 CPUs each do not fit at its largest size"):
        trials_at_once(Workers(1, cpus=1000.0), 5)
