"""Whose node is blamed when a worker group fails. The errors are made as Ray makes them, with texts that were recorded
from groups of two workers whose second one was broken in each of these ways.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray._raylet import ActorID
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from torch.distributed import DistBackendError

from sweeps.running import failing_nodes, group_failures
from sweeps.running.failing_nodes import FailingNodes
from sweeps.running.group_failures import Culprit, first_to_fail
from sweeps.trial_config import AVOIDED, ID
from trainables.training.job import Workers
from trainables.training.launch import FAILED_AT, NODES, OnUnfitNode

GOOD, BAD, SPARE = "9bc9daad", "c05b511b", "76c934e0"
CLOSED = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
    "[127.0.0.1]:60050. This is typically caused by a remote worker crashing."
)
NO_INTERFACE = (
    "[enforce fail at /__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to "
    "find address for: nowhere0"
)
DEAD = "215387f8652a9d7ae3d2ece701000000"


def raised(error: Exception, node: str, when: float) -> Exception:
    setattr(error, FAILED_AT, (node, when))
    return error


def died(actor: str = DEAD) -> Exception:
    context = ActorDiedErrorContext(
        class_name="RayTrainWorker",
        actor_id=ActorID(bytes.fromhex(actor)).binary(),
        error_message="The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR",
    )
    return WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError(cause=context))


def missing(node: str, when: float) -> Exception:
    return raised(FileNotFoundError("no weights on this machine"), node, when)


def group(*failures: Exception | None) -> WorkerGroupError:
    """Of ranks 0, 1, ...; None for a worker that has not failed when Train collects the failures."""
    return WorkerGroupError("text", {rank: error for rank, error in enumerate(failures) if error})


def starting(error: Exception) -> ControllerError:
    """As Train raises it when one worker fails before the training function is called."""
    text = (
        f"\x1b[36mray::execute._setup_torch_process_group()\x1b[39m (pid=646, ip=192.0.2.2, actor_id={DEAD}, repr=<"
        f"ray.train.v2.RayTrainWorker object at 0x7fdf3af93950>)\n{type(error).__name__}: {error}"
    )
    return ControllerError(RayTaskError("execute", text, error).as_instanceof_cause())


CASES: dict[str, tuple[BaseException, Any]] = {
    "alone": (group(None, missing(BAD, 2.0)), (BAD, "worker 1: FileNotFoundError: no weights on this machine")),
    "killed, which breaks a connection": (
        group(raised(RuntimeError(CLOSED), GOOD, 1.0), died()),
        (BAD, "the process of worker 1 died"),
    ),
    "a connection breaks first": (
        group(raised(RuntimeError(CLOSED), GOOD, 1.0), missing(BAD, 2.0)),
        (BAD, "worker 1: FileNotFoundError: no weights on this machine"),
    ),
    "two errors": (
        group(raised(RuntimeError("CUDA error: unspecified launch failure"), GOOD, 2.0), missing(BAD, 1.0)),
        (BAD, "worker 1: FileNotFoundError: no weights on this machine"),
    ),
    "only a connection": (group(raised(RuntimeError(CLOSED), GOOD, 1.0), None), None),
    "only NCCL's connections": (
        group(*(raised(DistBackendError("NCCL error: ncclRemoteError"), node, 1.0) for node in (GOOD, BAD))),
        None,
    ),
    "no driver": (
        group(raised(DistBackendError("NCCL error: ncclUnhandledCudaError"), BAD, 1.0)),
        (BAD, "worker 0: DistBackendError: NCCL error: ncclUnhandledCudaError"),
    ),
    "killed on both nodes": (group(died("a" * 24 + "01000000"), died()), None),
    "at the start": (starting(RuntimeError(NO_INTERFACE)), (BAD, f"RuntimeError: {NO_INTERFACE}")),
    "at the start, no connection": (starting(RuntimeError(CLOSED)), None),
    "of the controller itself": (ControllerError(ValueError("too few nodes")), None),
    "none of Train": (ValueError("no such setting"), None),
}
"""Name -> the error that Train's `fit` raises, and the node and text that follow from it."""


@pytest.mark.parametrize("case", CASES)
def test_node_of_the_first_failure_is_blamed(case: str) -> None:
    error, expected = CASES[case]
    nodes = {DEAD: BAD}
    sent = cloudpickle.loads(cloudpickle.dumps(error))  # as from the trial's driver to Tune
    assert first_to_fail(sent, lambda actor: nodes.get(actor, GOOD)) == (Culprit(*expected) if expected else None)


class Nodes(FailingNodes):
    """On a recorded state of a cluster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *alive: str, grows: bool = False, runs: str = "") -> None:
        self.stops: list[str] = []
        super().__init__(Workers(2), self.stops.append)
        self.alive = list(alive)
        at_work = {"JobID": "01000000", "ActorClassName": "RayTrainWorker", "StartTime": 1, "Address": {"NodeID": runs}}
        monkeypatch.setattr(failing_nodes, "alive_nodes", self._nodes)
        monkeypatch.setattr(failing_nodes, "replaces_nodes", lambda: grows)
        monkeypatch.setattr(failing_nodes, "draining_nodes", set)
        monkeypatch.setattr(failing_nodes, "may_grow", lambda: grows)
        monkeypatch.setattr(failing_nodes, "actors", lambda actor_state_name: {"": at_work})
        monkeypatch.setattr(
            failing_nodes.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01000000")
        )

    def _nodes(self) -> list[dict[str, Any]]:
        where = enumerate(self.alive)
        return [{"NodeID": id, "NodeManagerAddress": f"10.0.0.{at}", "Resources": {"CPU": 1}} for at, id in where]

    def later(self, seconds: float) -> None:
        """One step of Tune, so many seconds after all nodes were left out."""
        self._waits, self._counted = self._waits and time.monotonic() - seconds, float("-inf")
        self.on_step_end(0, [])

    def fail(self, id: str, error: BaseException, folder: Path) -> list[str]:
        """One try of a trial; returns where its next one does not go."""
        file = folder / "error.pkl"
        file.write_bytes(cloudpickle.dumps(RayTaskError("train", "text", error).as_instanceof_cause()))
        trial = SimpleNamespace(config={ID: id}, pickled_error_file=str(file), max_failures=2, status="PENDING")
        self.place(trial)
        self.on_trial_start(0, [], trial)
        self.failed(trial)
        self.place(trial)
        return trial.config[AVOIDED]

    def report(self, id: str, *nodes: str) -> None:
        self.on_trial_result(0, [], SimpleNamespace(config={ID: id}), {NODES: list(nodes)})


BROKEN = group(raised(RuntimeError(CLOSED), GOOD, 1.0), missing(BAD, 2.0))


def test_node_whose_workers_fail_is_left_out_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = Nodes(monkeypatch, GOOD, BAD, SPARE)
    assert nodes.fail("t000", BROKEN, tmp_path) == [BAD]  # the next try goes elsewhere
    assert not nodes._left_out
    nodes.report("t000", GOOD, SPARE)
    assert nodes.fail("t001", BROKEN, tmp_path) == [BAD]
    assert list(nodes._left_out) == [BAD] and not nodes.stops
    assert nodes.fail("t002", group(missing(GOOD, 1.0)), tmp_path) == [BAD]  # a node that has reported is not blamed
    assert list(nodes._failures) == [BAD]


def test_trial_that_fails_where_others_report_says_nothing_about_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = Nodes(monkeypatch, GOOD, BAD, SPARE)
    nodes.fail("t000", group(missing(GOOD, 1.0)), tmp_path)
    nodes.fail("t000", group(missing(BAD, 1.0)), tmp_path)
    nodes.report("t001", GOOD, SPARE)
    nodes.fail("t002", BROKEN, tmp_path)
    assert not nodes._left_out


def test_node_on_which_another_group_works_for_longer_is_not_left_out_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = Nodes(monkeypatch, GOOD, BAD, SPARE, runs=BAD)
    for id in ("t000", "t001"):
        nodes.fail(id, BROKEN, tmp_path)
    assert not nodes._left_out


@pytest.mark.parametrize("grows", [False, True])
def test_sweep_stops_if_no_group_fits_on_the_other_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, grows: bool
) -> None:
    """A cluster that grows gets another node instead."""
    nodes = Nodes(monkeypatch, GOOD, BAD, grows=grows)
    assert nodes.fail("t000", BROKEN, tmp_path) == []  # no other place: the same nodes again
    assert nodes.fail("t001", BROKEN, tmp_path) == [BAD]
    said = (
        "no group fits on the other nodes; the last one said: worker 1: FileNotFoundError: no weights on this machine"
    )
    assert nodes.stops == ([] if grows else [said])


def test_unfit_node_is_left_out_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also after reports from it: its disk may have become full."""
    nodes = Nodes(monkeypatch, GOOD, BAD, SPARE)
    nodes.report("t000", GOOD, BAD)
    said = "--results: node b does not see /shared/run; all nodes must share it"
    assert nodes.fail("t001", OnUnfitNode(BAD, said), tmp_path) == [BAD]
    assert not nodes.stops
    assert nodes.fail("t002", OnUnfitNode(BAD, said), tmp_path) == [BAD]  # Train had its place there before
    assert not nodes.stops
    nodes.fail("t002", OnUnfitNode(GOOD, said), tmp_path)
    assert nodes.stops == [f"no group fits on the other nodes; the last one said: {said}"]


def test_failure_of_an_unknown_worker_blames_no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nodes = Nodes(monkeypatch, GOOD, BAD, SPARE)
    monkeypatch.setattr(group_failures, "node_of_actor", lambda actor: "")
    for id in ("t000", "t001", "t002"):
        assert nodes.fail(id, group(raised(RuntimeError(CLOSED), GOOD, 1.0)), tmp_path) == []
    assert not nodes._failures


def all_left_out(monkeypatch: pytest.MonkeyPatch, folder: Path, grows: bool = True) -> Nodes:
    nodes = Nodes(monkeypatch, GOOD, BAD, grows=grows)
    for id, node in (("t000", GOOD), ("t001", BAD)):
        nodes.fail(id, OnUnfitNode(node, "no driver"), folder)
    return nodes


END = "trials failed on every node, and all are left out; the last one said: no driver"


def test_sweep_stops_if_all_nodes_are_left_out_and_no_other_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert all_left_out(monkeypatch, tmp_path, grows=False).stops[-1:] == [END]
    nodes = all_left_out(monkeypatch, tmp_path)
    nodes.later(1190)
    assert not nodes.stops
    nodes.later(1210)
    assert nodes.stops == [f"{END}; no other node has come within 20 min"]


def test_trials_wait_for_another_node_but_not_after_three_unfit_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = all_left_out(monkeypatch, tmp_path)
    nodes.alive.append(SPARE)
    nodes.later(10)
    nodes.alive.remove(SPARE)  # reclaimed: the sweep waits as for any other place
    nodes.later(1210)
    assert not nodes.stops
    nodes.alive.append(SPARE)
    nodes.fail("t002", OnUnfitNode(SPARE, "no driver"), tmp_path)
    assert nodes.stops == [END]
