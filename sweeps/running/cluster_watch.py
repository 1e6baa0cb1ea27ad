"""Watches a cluster while a sweep runs: says which nodes come and go, and what trials wait for; frees the resources of
worker groups that did not start."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray._private.state import state
from ray._raylet import ActorID, PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # generated
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from sweeps.formatting import count_text
from sweeps.recording.progress import logger
from sweeps.running.capacity import alive_nodes, cluster_status, draining_nodes, node_name

_EVERY = 2.0  # seconds
_AGAIN = 300.0  # seconds until a state that has not changed is said again
_SETTLED = 2  # looks at which a demand must be seen: most are met at once


class ClusterWatch:
    """A thread beside the sweep.

    Args:
        nodes: whether nodes may come and go, as on a cluster that others started.
        before: the nodes that the sweep found, Ray's descriptions. What has changed since is said at the first look.
    """

    def __init__(self, nodes: bool, before: Sequence[dict[str, Any]]) -> None:
        self._nodes = nodes
        self._known = {node["NodeID"]: node_name(node) for node in before}
        self._draining: set[str] = set()
        self._said, self._at, self._seen = "", 0.0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call it before the connection to Ray ends."""
        self._done.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._done.wait(_EVERY):
            try:
                free_abandoned_groups()
                if self._nodes:
                    self._say_nodes()
                    self._say_demand()
            except (RayError, OSError, RuntimeError):  # a lost head: the sweep itself says so
                continue

    def _say_nodes(self) -> None:
        now = {node["NodeID"]: node_name(node) for node in alive_nodes()}
        for id in now.keys() - self._known.keys():
            logger.info("cluster    %s joined; %s", now[id], _nodes(len(now)))
        names = self._known | now
        for id in draining_nodes() & names.keys() - self._draining:
            logger.info("cluster    %s will be taken away, and gets no more work; its trials move", names[id])
            self._draining.add(id)
        for id in self._known.keys() - now.keys():
            logger.info(
                "cluster    %s is gone; %d nodes. Its trials continue from their checkpoints", self._known[id], len(now)
            )
        self._known = now

    def _say_demand(self) -> None:
        text = waiting_for()
        self._seen = self._seen + 1 if text else 0
        due = text != self._said or time.monotonic() - self._at > _AGAIN
        if self._seen >= _SETTLED and due:
            logger.info("cluster    %s", text)
            self._said, self._at = text, time.monotonic()


def waiting_for() -> str:
    """What the sweep waits for on the cluster; empty if nothing."""
    status = cluster_status()
    wanted = [
        *(request.requests for request in status.cluster_resource_state.pending_gang_resource_requests),
        *([one.request] * one.count for one in status.cluster_resource_state.pending_resource_requests),
    ]
    if not wanted:
        return ""
    coming = len(status.autoscaling_state.pending_instances) + sum(
        one.count for one in status.autoscaling_state.pending_instance_requests
    )
    sizes = sorted({_size(bundle.resources_bundle) for bundles in wanted for bundle in bundles})
    workers = sum(len(bundles) for bundles in wanted)
    starting = f"{_nodes(coming)} starting" if coming else "no node is starting"
    room = f"{count_text(workers, 'worker')} of {' or '.join(sizes)}"
    return f"{_nodes(len(alive_nodes()))}; waiting for room for {room}; {starting}"


def free_abandoned_groups() -> None:
    """Removes the placement groups of actors that have died.

    Train leaves the one of a worker group that did not start, and its resources would stay taken until the sweep ends.
    """
    job = ray.get_runtime_context().get_job_id()
    for group in state._connect_and_get_accessor().get_placement_group_table():
        found = PlacementGroupTableData.FromString(group)
        by_actor = not ActorID(found.creator_actor_id).is_nil()  # Tune makes the groups of its trials in the driver
        ours = by_actor and found.creator_job_id.hex() == job
        if ours and found.creator_actor_dead and found.state != found.REMOVED:
            remove_placement_group(PlacementGroup(PlacementGroupID(found.placement_group_id)))


def _nodes(count: int) -> str:
    return count_text(count, "node")


def _size(resources: Any) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))
