"""Connects a sweep to Ray: starts a local Ray, or joins a running cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
from ray._private import worker as ray_worker
from ray._private.services import canonicalize_bootstrap_address

from sweeps.planning.settings import SweepSettings
from sweeps.recording.progress import FOR_FILE, logger
from sweeps.running.capacity import alive_nodes, trials_at_once
from sweeps.running.cluster_watch import ClusterWatch
from trainables.common.cluster import join, shipped_code
from trainables.common.command import end_on_sigterm
from trainables.common.devices import FAKE, fake_gpus
from trainables.common.local_ray import local_ray, messages_to
from trainables.common.machine import usable_cpus
from trainables.common.ray_watch import HeadWatch
from trainables.training.job import Workers

_ENVIRONMENT = {
    # Train's controller polls for reports at this interval; its default of 2 s is as long as a small step.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Train asks at this interval, 5 s by default, whether a machine of a group is drained. Google gives 30 s.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Train would print again, through its logger, what a worker of a group prints, and the trial's log would have both.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # The recorder writes tables and TensorBoard; Tune's own loggers would write a second, different set.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A failed trial reports its error instead of a metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Interval of Tune's saved state, which is never read: as long as possible.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # A reused process waits this long for the thread of its stopped trial to end. After the default of 2 s, Tune
    # abandoned the next trial on a busy machine.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray would start a process on every CPU for the driver's first tasks. Trials have processes of their own.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def workers(settings: SweepSettings) -> Workers:
    return Workers(settings.workers_per_trial, settings.cpus_per_worker, settings.gpus_per_worker)


@contextmanager
def tune_interrupts() -> Iterator[None]:
    """Restores the Ctrl-C handler at the end. Tune installs its own and does not remove it; a later Ctrl-C would
    then have no effect."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # only this thread can set handlers
            signal.signal(signal.SIGINT, before)


def _log(reason: str) -> None:
    logger.error("%s", reason)


@contextmanager
def connected(settings: SweepSettings, trials: int, lost: Callable[[str], None] = _log) -> Iterator[int]:
    """Connects to Ray and disconnects at the end; yields how many trials run at once.

    On a cluster that grows, this is the number at its largest size: a trial that does not fit yet waits, and makes the
    cluster grow.

    Args:
        trials: how many there are.
        lost: called with the reason before this process ends because a local Ray or the head of a cluster has ended.

    Raises:
        InputError: no cluster at the address, or a cluster too small for one trial.
        CannotRun: a local Ray does not start.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    direct = without_proxy(_head(settings.address))
    os.environ |= direct
    theirs = _ENVIRONMENT | added_on_nodes(direct) | ({FAKE: os.environ[FAKE]} if FAKE in os.environ else {})
    groups, anywhere = settings.workers_per_trial > 1, bool(settings.address)
    with (
        messages_to(_keep_message),
        _joined(settings, theirs, lost) if anywhere else local_ray(usable_cpus(), fake_gpus(), lost, groups),
    ):
        # The recorder logs placement and interrupts; Tune would log them again.
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        found = alive_nodes()  # the question how many trials fit already makes a cluster grow
        at_once = trials_at_once(workers(settings), min(trials, settings.max_concurrent or trials))
        watch = ClusterWatch(anywhere, found) if anywhere or groups else None
        try:
            yield at_once
        finally:
            if watch:
                watch.close()


def _keep_message(line: str) -> None:
    logger.info("ray        %s", line, extra=FOR_FILE)


def without_proxy(*hosts: str) -> dict[str, str]:
    """The variables that keep Ray's own HTTP requests from a proxy, if this environment has one; otherwise none.

    Train asks the dashboard whether a stopped group has ended. Through a proxy it gets no answer, and the next group
    waits forever.
    """
    if not any(
        name.lower() in ("http_proxy", "https_proxy", "all_proxy") and value for name, value in os.environ.items()
    ):
        return {}
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    direct = ",".join(dict.fromkeys([*filter(None, known.split(",")), "127.0.0.1", "localhost", *filter(None, hosts)]))
    return {"no_proxy": direct, "NO_PROXY": direct}


def added_on_nodes(direct: Mapping[str, str]) -> dict[str, str]:
    """The variables of `without_proxy` as Ray sets them on a node: added to the node's own NO_PROXY, which Ray inserts.

    Trials on a node with another proxy, such as Google's client for buckets, keep its exceptions.
    """
    return {name: f"${{NO_PROXY}},{hosts}" for name, hosts in direct.items()}


def _head(address: str) -> str:
    """The host of a cluster's head; of this machine for a local Ray."""
    if not address:
        return str(ray.util.get_node_ip_address())
    found = canonicalize_bootstrap_address(address) or ""
    return found.rpartition(":")[0].strip("[]")


@contextmanager
def _joined(settings: SweepSettings, environment: Mapping[str, str], lost: Callable[[str], None]) -> Iterator[None]:
    """A running cluster. Its processes get this environment."""
    join(settings.address, {**shipped_code(settings.results, settings.store), "env_vars": dict(environment)})
    node = ray_worker.global_worker.node
    assert node  # this process has just joined
    watch = HeadWatch(lost, ray.get_runtime_context().gcs_address, node.raylet_socket_name)
    try:
        end_on_sigterm()  # Ray has replaced the handler
        yield
    finally:
        watch.close()
        ray.shutdown()
