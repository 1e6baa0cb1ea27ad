"""Nodes on which trials fail before anything was reported from them: trials go elsewhere.

A node may lack a folder, a driver or memory. Each of its failures takes seconds, so that it would draw one trial after
the other and use up their tries. Trials are kept away by a label that Ray gives each node, its id. The node itself
stays free, and an autoscaler can remove it. Of a worker group, only the node of the worker that failed first is blamed.

A node that a trial has found to be unfit (`reporting.NodeUnfit`), such as one that does not see the results, is left
out at once, and the trial has not failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray._private.state import actors
from ray.tune import Callback

from sweeps.recording.progress import logger
from sweeps.recording.trial_errors import last_line
from sweeps.running.capacity import alive_nodes, draining_nodes, may_grow, node_name, places, replaces_nodes
from sweeps.running.group_failures import error_of, first_to_fail, node_of_actor
from sweeps.trial_config import AVOIDED, ID
from trainables.common.units import duration
from trainables.training.job import Workers
from trainables.training.launch import NODES, OnUnfitNode, trial_resources

TRIALS = 2
"""Different trials that must have failed on a node before it is left out."""
_LOOK_AGAIN = 2.0  # seconds until the nodes are counted anew
_MOST_UNFIT = 3  # nodes in a row, without a report from any: a fourth would be as bad, and costs money
_PATIENCE = 1200.0  # seconds in which another node may start; an unfit one may have to be idle for a while first
_WORKER = "RayTrainWorker"  # Train's class of the workers of a group


class FailingNodes(Callback):
    """Follows where trials run and fail. A Tune callback; the scheduler calls `failed` and `place`.

    A node is left out if `limit` different trials failed on it, nothing was ever reported from it, and no trial has run
    there for longer than the failures took. A trial that failed on a node without reports is next tried on others, if
    there are any. If it also failed on one that has reported, its failures say nothing about nodes.

    A worker group fails on one node, that of `group_failures.first_to_fail`, and reports from all of its nodes.

    An unfit node is left out whatever was reported from it.

    If all nodes are left out and Ray's new autoscaler may start another one, trials wait for it. The tries that failed
    on a node that is left out do not count.

    Args:
        workers: of a trial.
        stop: ends the sweep, with a reason, when all nodes are left out and no other comes, or when no group fits on
            the others.
        limit: different trials.
    """

    def __init__(self, workers: Workers, stop: Callable[[str], None], limit: int = TRIALS) -> None:
        self._workers, self._stop, self._limit = workers, stop, limit
        self._group = workers.count > 1
        self._running: dict[str, tuple[str, float]] = {}  # trial -> node, and since when
        self._slowest: dict[str, float] = {}  # node -> seconds until its slowest failure
        self._reported: set[str] = set()  # nodes
        self._failures: dict[str, dict[str, str]] = {}  # node -> trial -> what it said last
        self._left_out: dict[str, str] = {}  # node -> its address
        self._free, self._counted = 0, float("-inf")
        self._tries: dict[str, list[Any]] = {}  # node -> the trial of each failed try
        self._unfit = 0  # nodes left out since the last report
        self._waits, self._why = 0.0, ""  # since when for another node, and what to say if none comes

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; nothing of this is read again

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._group:  # Train places its workers later
            self._running[trial.config[ID]] = "", time.monotonic()
        elif node := _node_of(trial):
            self._running[trial.config[ID]] = node, time.monotonic()
            if node in self._left_out:  # Ray had reserved its place there before
                trial.max_failures += 1

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        node, _ = self._running.get(trial.config[ID], ("", 0.0))
        self._unfit = 0
        self._reported.update(result.get(NODES, []) if self._group else [node])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._running.pop(trial.config[ID], None)

    def failed(self, trial: Any) -> None:
        """Call it when a try of a trial has failed, before it is placed again."""
        id = trial.config[ID]
        node, began = self._running.pop(id, ("", 0.0))
        names = {one["NodeID"]: node_name(one) for one in alive_nodes()}
        if isinstance(error := error_of(trial), OnUnfitNode):
            if error.node in names.keys() - self._left_out.keys():
                self._leave_out(error.node, names[error.node], error.error_msg, error.error_msg)
            return
        said = ""
        if self._group:
            node, said = first_to_fail(error) or ("", "")
            if node in self._left_out:  # Train had its place there before
                trial.max_failures += 1
        if not node or node in self._reported or node in draining_nodes():
            return
        self._failures.setdefault(node, {})[id] = said or last_line(trial)
        self._tries.setdefault(node, []).append(trial)
        self._slowest[node] = max(self._slowest.get(node, 0.0), time.monotonic() - began)
        for other in self._failures.keys() & names.keys() - self._left_out.keys():
            self._judge(other, names[other])

    def _judge(self, node: str, name: str) -> None:
        at_fault = {id for other in self._failures.keys() & self._reported for id in self._failures[other]}
        said = {id: text for id, text in self._failures[node].items() if id not in at_fault}
        if len(said) < self._limit or node in self._reported or self._runs(node, self._slowest[node]):
            return
        text = list(said.values())[-1]
        self._leave_out(node, name, f"{' and '.join(said)} failed on it, the last one with: {text}", text)

    def _leave_out(self, node: str, name: str, why: str, text: str) -> None:
        """Keeps trials away from a node from now on; ends the sweep if there is no place left.

        Args:
            why: for the line about the node.
            text: what a trial has said on it last, for the line about the end.
        """
        self._left_out[node] = name
        self._counted = float("-inf")
        self._unfit += 1
        for trial in self._tries.pop(node, ()):
            trial.max_failures += 1
        logger.info("cluster    %s is left out: %s", name, why)
        rest = self._places(self._left_out)
        if rest >= self._workers.count or (rest and may_grow()):
            return
        what = "no group fits on the other nodes" if rest else "trials failed on every node, and all are left out"
        self._why = f"{what}; the last one said: {text}"
        if not rest and self._unfit < _MOST_UNFIT and replaces_nodes():
            self._waits = time.monotonic()
            logger.info("cluster    all nodes are left out; trials wait for another one")
        else:
            self._stop(self._why)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._waits:
            return
        if self._fitting():
            self._waits = 0.0
        elif time.monotonic() - self._waits > _PATIENCE:
            self._waits = 0.0
            self._stop(f"{self._why}; no other node has come within {duration(_PATIENCE)}")

    def _runs(self, node: str, seconds: float) -> bool:
        """Whether a trial has run on a node for longer."""
        if not self._group:
            longer = time.monotonic() - seconds
            return any(place == node and began < longer for place, began in self._running.values())
        earlier, job = (time.time() - seconds) * 1000, ray.get_runtime_context().get_job_id()
        at_work = [one for one in actors(actor_state_name="ALIVE").values() if one["JobID"] == job]
        workers = [one for one in at_work if one["ActorClassName"] == _WORKER and one["Address"]["NodeID"] == node]
        return any(0 < one["StartTime"] < earlier for one in workers)

    def place(self, trial: Any) -> None:
        """Keeps a trial that has no place yet away from these nodes."""
        avoided = self._avoided(trial.config[ID])
        if self._group:
            trial.config[AVOIDED] = sorted(avoided)
        elif avoided and trial.status != trial.RUNNING:  # else it has failed for good
            resources = trial_resources(self._workers, avoided)
            if resources != trial.placement_group_factory:  # Tune has filed a trial that waits under those it has
                trial.update_resources(resources)

    def room(self) -> int:
        """How many trials fit on the nodes there are now, without those that are left out; 1 or more."""
        return max(1, self._fitting() // self._workers.count)

    def _fitting(self) -> int:
        """How many workers fit on the nodes there are now, without those that are left out."""
        if time.monotonic() - self._counted > _LOOK_AGAIN:
            self._free, self._counted = self._places(self._left_out), time.monotonic()
        return self._free

    def _avoided(self, id: str) -> frozenset[str]:
        own = {node for node, failed in self._failures.items() if id in failed and node not in self._reported}
        both = frozenset(own | self._left_out.keys())
        return both if self._places(both) >= self._workers.count else frozenset(self._left_out)

    def _places(self, avoided: Collection[str]) -> int:
        """How many workers fit on the nodes without these."""
        return places(self._workers, [node for node in alive_nodes() if node["NodeID"] not in avoided])


def _node_of(trial: Any) -> str:
    """The id of the node on which a trial's process runs; empty if unknown."""
    actor = trial.temporary_state.ray_actor
    return node_of_actor(actor._actor_id.hex()) if actor is not None else ""
