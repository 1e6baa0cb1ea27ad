"""Connects a sweep to Ray: starts a local Ray, or joins a running cluster."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._private.services import canonicalize_bootstrap_address

from sweeps.planning.settings import SweepSettings
from sweeps.planning.temporary import session_folder
from sweeps.recording.progress import FOR_FILE, logger
from sweeps.running.capacity import trials_at_once
from sweeps.running.cluster_watch import ClusterWatch
from sweeps.running.ray_watch import HeadWatch, RayWatch, end_children
from trainables.common.cluster import join, shipped_code
from trainables.common.command import end_on_sigterm
from trainables.common.devices import FAKE, fake_gpus
from trainables.common.errors import CannotRun, one_line
from trainables.common.machine import usable_cpus
from trainables.common.paths import ROOT
from trainables.training.job import Workers

_ENVIRONMENT = {
    # Train's controller polls for reports at this interval; its default of 2 s is as long as a small step.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
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
_ATTEMPTS = 4
_OBJECT_STORE_BYTES = 100 * 2**20  # results are small and data is memory-mapped: the object store is almost empty


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
        _messages_in_log(),
        _joined(settings, theirs, lost) if anywhere else _started(groups, lost),
    ):
        # The recorder logs placement and interrupts; Tune would log them again.
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        at_once = trials_at_once(workers(settings), min(trials, settings.max_concurrent or trials))
        watch = ClusterWatch(nodes=anywhere) if anywhere or groups else None
        try:
            yield at_once
        finally:
            if watch:
                watch.close()


@contextmanager
def _messages_in_log() -> Iterator[None]:
    """Writes what Ray's nodes tell the driver into the sweep's log only. When a process of Ray ends, that is dozens of
    lines of its C++ log, which Ray prints on the terminal, in the middle of the progress.
    """
    printed = ray_worker.print_to_stdstream

    def keep(data: Any, ignore_prefix: bool) -> None:
        for line in "\n".join(data["lines"]).splitlines():
            logger.info("ray        %s", line.rstrip(), extra=FOR_FILE)

    ray_worker.print_to_stdstream = keep
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = printed


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


@contextmanager
def _started(groups: bool, lost: Callable[[str], None]) -> Iterator[None]:
    """A local Ray. Its processes inherit this process's environment."""
    # Ray would write a token into HOME, where others may read it, and fail if that cannot be written. It reads the
    # variable once per process, so it stays as it is.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with session_folder() as folder:
        for attempt in range(_ATTEMPTS):
            try:
                _start(groups, folder)
                break
            except Exception as error:  # Ray raises plain ones too
                ray.shutdown()
                end_children()
                # Its own limit of 30 s is too short on a busy machine.
                if "timed out" not in str(error) or attempt == _ATTEMPTS - 1:
                    raise CannotRun(f"Ray does not start in {folder} ({one_line(error)})") from None
        watch = RayWatch(lost, folder.parent)
        try:
            yield
        finally:
            watch.close()
            ray.shutdown()


def _start(groups: bool, folder: Path) -> None:
    # SIGTERM often goes to all processes of a job, SIGHUP to all of a closed terminal. Ray's inherit this, so that the
    # driver can end them in order.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    # Workers import this project, also if it is not installed and the driver runs in another folder.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, **(_chosen_address() if groups else {})}
    earlier = {name: os.environ.get(name) for name in own}
    try:
        os.environ.update(own)
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            num_gpus=fake_gpus(),  # None: Ray counts the real ones
            # Train frees the resources of a stopped worker group through the dashboard's state API.
            include_dashboard=groups,
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
    finally:
        # Ray has replaced the handler: a signal that came meanwhile would end this process without a word.
        end_on_sigterm()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _chosen_address() -> dict[str, str]:
    """The environment variables that set the address of our Ray and pass it to its processes.

    To free the CPUs of a stopped group, Train looks for the Ray of this machine. If several run, it fails silently and
    the next group waits forever, unless RAY_ADDRESS names one.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    return {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
