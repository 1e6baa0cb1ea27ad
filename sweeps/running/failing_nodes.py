"""Nodes on which trials fail before anything was reported from them: trials go elsewhere.

A node may lack a folder, a driver or memory. Each of its failures takes seconds, so that it would draw one trial after
the other and use up their tries. Trials are kept away by a label that Ray gives each node, its id. The node itself
stays free, and an autoscaler can remove it. One-worker trials only: Train places the workers of a group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ray._private.state import actors
from ray.tune import Callback

from sweeps.recording.progress import logger
from sweeps.recording.recorder import reason_of
from sweeps.running.capacity import alive_nodes, draining_nodes, node_name, places
from sweeps.trial_config import ID
from trainables.common.errors import one_line
from trainables.training.launch import Workers, trial_resources

TRIALS = 2
"""Different trials that must have failed on a node before it is left out."""


class FailingNodes(Callback):
    """Follows where trials run and fail. A Tune callback; the scheduler calls `failed` and `place`.

    A node is left out if `limit` different trials failed on it, nothing was ever reported from it, and no trial has run
    there for longer than the failures took. A trial that failed on a node without reports is next tried on others, if
    there are any. If it also failed on one that has reported, its failures say nothing about nodes.

    Args:
        workers: of a trial; one.
        stop: ends the sweep, with a reason, when all nodes are left out.
        limit: different trials.
    """

    def __init__(self, workers: Workers, stop: Callable[[str], None], limit: int = TRIALS) -> None:
        self._workers, self._stop, self._limit = workers, stop, limit
        self._running: dict[str, tuple[str, float]] = {}  # trial -> node, and since when
        self._slowest: dict[str, float] = {}  # node -> seconds until its slowest failure
        self._reported: set[str] = set()  # nodes
        self._failures: dict[str, dict[str, str]] = {}  # node -> trial -> what it said last
        self._left_out: dict[str, str] = {}  # node -> its address

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; nothing of this is read again

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if node := _node_of(trial):
            self._running[trial.config[ID]] = node, time.monotonic()
            if node in self._left_out:  # Ray had reserved its place there before
                trial.max_failures += 1

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        node, _ = self._running.get(trial.config[ID], ("", 0.0))
        self._reported.add(node)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.pop(trial.config[ID], None)

    def failed(self, trial: Any) -> None:
        """Call it when a try of a trial has failed, before it is placed again."""
        id = trial.config[ID]
        node, began = self._running.pop(id, ("", 0.0))
        if not node or node in self._reported or node in draining_nodes():
            return
        self._failures.setdefault(node, {})[id] = _said(trial)
        self._slowest[node] = max(self._slowest.get(node, 0.0), time.monotonic() - began)
        names = {one["NodeID"]: node_name(one) for one in alive_nodes()}
        for other in self._failures.keys() & names.keys() - self._left_out.keys():
            self._judge(other, names[other])

    def _judge(self, node: str, name: str) -> None:
        at_fault = {id for other in self._failures.keys() & self._reported for id in self._failures[other]}
        said = {id: text for id, text in self._failures[node].items() if id not in at_fault}
        longer = time.monotonic() - self._slowest[node]
        runs = any(place == node and began < longer for place, began in self._running.values())
        if len(said) < self._limit or runs or node in self._reported:
            return
        self._left_out[node] = name
        text = list(said.values())[-1]
        logger.info("cluster    %s is left out: %s failed on it, the last one with: %s", name, " and ".join(said), text)
        if not self._others(self._left_out):
            self._stop(f"trials failed on every node, and all are left out; the last one said: {text}")

    def place(self, trial: Any) -> None:
        """Keeps a trial that has no place yet away from these nodes."""
        avoided = self._avoided(trial.config[ID])
        if avoided and trial.status != trial.RUNNING:  # else it has failed for good
            resources = trial_resources(self._workers, avoided)
            if resources != trial.placement_group_factory:  # Tune has filed a trial that waits under those it has
                trial.update_resources(resources)

    def _avoided(self, id: str) -> frozenset[str]:
        own = {node for node, failed in self._failures.items() if id in failed and node not in self._reported}
        both = frozenset(own | self._left_out.keys())
        return both if self._others(both) else frozenset(self._left_out)

    def _others(self, avoided: Collection[str]) -> bool:
        """Whether a node without these could hold a trial."""
        return places(self._workers, [node for node in alive_nodes() if node["NodeID"] not in avoided]) > 0


def _said(trial: Any) -> str:
    """The last line of a failure. Tune moves the file to its storage later."""
    try:
        lines = Path(trial.error_file).read_text(encoding="utf-8", errors="replace").split("\n")
        return one_line([line for line in lines if line.strip()][-1])
    except (OSError, TypeError, IndexError):
        return reason_of(trial)


def _node_of(trial: Any) -> str:
    """The id of the node on which a trial's process runs; empty if unknown."""
    actor = trial.temporary_state.ray_actor
    if actor is None:
        return ""
    return str(actors(actor._actor_id.hex()).get("Address", {}).get("NodeID", ""))
