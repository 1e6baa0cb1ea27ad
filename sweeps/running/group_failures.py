"""Which worker of a group failed first, and on which node. When one fails, the others often fail too: their connections
to it break. Only the first one says something about its node.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray import cloudpickle
from ray._private.state import actors
from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from trainables.common.errors import one_line
from trainables.training.launch import FAILED_AT

_OTHER_END = re.compile(r"/pair\.cc|connection (closed|reset|refused)|connectFullMesh|timed out", re.IGNORECASE)
"""In messages of gloo, which raises plain errors: the worker at the other end is gone or was never there."""
_OWN_DEVICE = "ncclUnhandledCudaError"
_ACTOR = re.compile(r"\bactor_id=([0-9a-f]{32})\b")


class Culprit(NamedTuple):
    """The worker that failed first: the id of its node, and what it said."""

    node: str
    said: str


def error_of(trial: Any) -> BaseException | None:
    """What was raised in a try of a trial that has just failed; None if it is not known."""
    try:
        # Written by Tune in this process a moment ago, from the error that Ray gave it.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # no file; an error of a class that cannot be made again
        return None
    return error.cause if isinstance(error, RayTaskError) else error


def node_of_actor(id: str) -> str:
    """The id of the node on which an actor runs or ran; empty if unknown."""
    return str(actors(id).get("Address", {}).get("NodeID", ""))


def first_to_fail(error: BaseException | None, node_of: Callable[[str], str] = node_of_actor) -> Culprit | None:
    """The worker whose failure was no consequence of another one's; None if it is not known.

    Args:
        error: of Train's `fit`.
        node_of: id of an actor -> id of its node.
    """
    if isinstance(error, WorkerGroupError):
        return _died(error.worker_failures, node_of) or _raised(error.worker_failures)
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, RayTaskError):
        failure = error.controller_failure  # of one worker, while the group starts
        actor = _ACTOR.search(str(failure))
        node = node_of(actor[1]) if actor and not _connection(failure.cause) else ""
        return Culprit(node, f"{type(failure.cause).__name__}: {one_line(failure.cause)}") if node else None
    return None


def _died(failures: Mapping[int, BaseException], node_of: Callable[[str], str]) -> Culprit | None:
    """The worker whose process died. It comes before any error: Train ends the processes of a group only after it has
    collected the failures. None if there is none, or if processes died on several nodes.
    """
    nodes = {rank: node_of(actor) for rank, error in failures.items() if (actor := _dead_actor(error))}
    if len(set(nodes.values())) != 1:
        return None
    rank, node = next(iter(nodes.items()))
    return Culprit(node, f"the process of worker {rank} died") if node else None


def _raised(failures: Mapping[int, BaseException]) -> Culprit | None:
    """The worker that raised the earliest error that is none of a connection."""
    own = {rank: error for rank, error in failures.items() if hasattr(error, FAILED_AT) and not _connection(error)}
    if not own or any(map(_dead_actor, failures.values())):
        return None
    rank, error = min(own.items(), key=lambda one: getattr(one[1], FAILED_AT)[1])
    node, _ = getattr(error, FAILED_AT)
    return Culprit(node, f"worker {rank}: {type(error).__name__}: {one_line(error)}")


def _dead_actor(error: BaseException) -> str:
    """The id of the worker's actor if its process died, but not because its node was taken back."""
    cause = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    return str(cause.actor_id or "") if isinstance(cause, RayActorError) and not cause.preempted else ""


def _connection(error: BaseException) -> bool:
    """Whether it is an error of a connection to another worker."""
    if isinstance(error, torch.distributed.DistError):
        return _OWN_DEVICE not in str(error)
    return isinstance(error, ConnectionError) or (
        isinstance(error, RuntimeError) and bool(_OTHER_END.search(str(error)))
    )
