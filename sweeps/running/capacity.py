"""How many trials a cluster can run at once: on the nodes it has, and on those that its autoscaler may add.

Ray 2.60 never records how large an autoscaling cluster may become, so the sweep asks for places for all its trials and
reads what becomes of the requests:

| cluster | says |
|---|---|
| new autoscaler (`ray up`, KubeRay) | which requests it can never fulfil |
| older autoscaler (`RAY_UP_enable_autoscaler_v2=0`) | nothing: every request counts as possible |
| no autoscaler | nothing: what its nodes hold is all there will be |
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # generated
from ray.core.generated.common_pb2 import NodeDeathInfo  # type: ignore[attr-defined]  # generated
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group

from sweeps.recording.progress import logger
from trainables.common.cluster import gcs_client
from trainables.common.errors import InputError
from trainables.training.job import Workers

_PATIENCE = 60.0  # seconds that an autoscaler gets to look at the requests; it does so every 5 seconds


def trials_at_once(workers: Workers, wanted: int) -> int:
    """How many of the `wanted` trials can run at once, now or after the cluster has grown; 1 or more.

    Raises:
        InputError: the cluster is too small for one trial, also at its largest size.
    """
    on_nodes = places(workers) // workers.count
    if on_nodes >= wanted:
        return wanted
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs_client()):
        fits, more = _asked(workers, wanted), " at its largest size"
    elif _has_older_autoscaler():
        fits, more = _asked_of_older(workers, wanted), " at its largest size"
    else:
        fits, more = on_nodes, ""
    if fits < 1:
        each = workers.each
        have = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}s" for name in each)
        need = " and ".join(f"{amount:g} {name}s" for name, amount in each.items())
        raise InputError(
            f"--workers-per-trial {workers.count}: workers of {need} each do not fit{more}; "
            f"the {len(alive_nodes())} nodes have {have} together"
        )
    return fits


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's descriptions of the nodes that run now."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_name(node: dict[str, Any]) -> str:
    """The address by which lines of the log name a node."""
    return str(node["NodeManagerAddress"])


def draining_nodes() -> set[str]:
    """Ids of the nodes that will be taken away and get no more work, and of those that were taken away: Ray ends a
    drained node as soon as nothing runs on it, which may be at once.
    """
    taken = {node["NodeID"] for node in ray.nodes() if node["DeathReason"] == NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED}
    return taken.union(state.get_draining_nodes())


def places(workers: Workers, nodes: Sequence[dict[str, Any]] | None = None) -> int:
    """How many workers fit on the nodes there are, or on these. A worker must fit on one node."""
    each, nodes = workers.each.items(), alive_nodes() if nodes is None else nodes
    return sum(min(int(node["Resources"].get(name, 0) // amount) for name, amount in each) for node in nodes)


def may_grow() -> bool:
    """Whether an autoscaler can add nodes."""
    return replaces_nodes() or _has_older_autoscaler()


def replaces_nodes() -> bool:
    """Whether there is the new autoscaler: it starts another node for a trial that must not run on those there are."""
    return bool(is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs_client()))


def cluster_status() -> GetClusterStatusReply:
    """What the cluster's nodes lack, and what its new autoscaler, if it has one, does about it."""
    return GetClusterStatusReply.FromString(gcs_client().get_cluster_status(timeout_s=10))


def _asked(workers: Workers, wanted: int) -> int:
    """How many of the trials the new autoscaler can place, on nodes there are or to come."""
    groups = [placement_group([workers.each] * workers.count) for _ in range(wanted)]
    try:
        own = {group.id.hex() for group in groups}
        asked = cluster_status().cluster_resource_state.cluster_resource_state_version
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            state = cluster_status().autoscaling_state
            if state.last_seen_cluster_resource_state_version > asked:
                never = {request.details.partition(":")[0] for request in state.infeasible_gang_resource_requests}
                return wanted - len(own & never)
            time.sleep(0.5)
    finally:
        for group in groups:
            remove_placement_group(group)
    logger.info("cluster    its autoscaler did not answer within %.0f s; it may add no nodes", _PATIENCE)
    return wanted


def _asked_of_older(workers: Workers, wanted: int) -> int:
    """All of the trials if one fits a node, or if the older autoscaler starts nodes for it; 0 if it starts none for a
    while. It does not tell what it can never place.
    """
    group = placement_group([workers.each] * workers.count)
    try:
        deadline = time.monotonic() + _PATIENCE
        while places(workers) < workers.count and not _starts_nodes():
            if time.monotonic() > deadline:
                return 0
            time.sleep(0.5)
        return wanted
    finally:
        remove_placement_group(group)


def _starts_nodes() -> bool:
    report = _older_report()
    return bool(report.get("pending_nodes") or report.get("pending_launches"))


def _has_older_autoscaler() -> bool:
    """Whether the older autoscaler runs with a configuration. Without one, it names each node's type after the node."""
    return any(not kind.startswith("node_") for kind in _older_report().get("active_nodes", {}))


def _older_report() -> dict[str, Any]:
    """What the older autoscaler says about its nodes; empty if there is none."""
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    return (json.loads(status).get("autoscaler_report") if status else None) or {}
