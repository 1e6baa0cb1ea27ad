"""Connects a sweep to Ray: starts a local Ray, or joins a running cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from sweeps.planning.settings import SweepSettings
from trainables.common.cluster import shipped_code
from trainables.common.errors import InputError
from trainables.training.launch import Workers

_ENVIRONMENT = {
    # Train's controller polls for reports at this interval; its default of 2 s is as long as a small step.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_V2_ENABLED": "1",
    # The recorder writes tables and TensorBoard; Tune's own loggers would write a second, different set.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A failed trial reports its error instead of a metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Interval of Tune's saved state. A killed driver loses the trials that started since.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    # A reused process waits this long for the thread of its stopped trial to end. After the default of 2 s, Tune
    # abandoned the next trial on a busy machine.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
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


@contextmanager
def connected(settings: SweepSettings) -> Iterator[int]:
    """Connects to Ray and disconnects at the end; yields how many trials run at once.

    Raises:
        InputError: no cluster at the address, or a cluster too small for one trial.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        if settings.address:
            _join(settings)
        else:
            _start(groups=settings.workers_per_trial > 1)
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--address {settings.address}: no Ray cluster to connect to ({reason})") from None
    try:
        # The recorder logs placement and interrupts; Tune would log them again.
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield _trials_at_once(settings)
    finally:
        ray.shutdown()


def _join(settings: SweepSettings) -> None:
    ray.init(
        address=settings.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={**shipped_code(settings.results, settings.store), "env_vars": _ENVIRONMENT},
    )


def _start(groups: bool) -> None:
    """Starts a local Ray. Its processes inherit this process's environment."""
    own = _chosen_address() if groups else {}
    try:
        os.environ.update(own)
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            # Train frees the resources of a stopped worker group through the dashboard's state API.
            include_dashboard=groups,
            dashboard_host="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        for name in own:
            del os.environ[name]


def _chosen_address() -> dict[str, str]:
    """The environment variables that set the address of our Ray and pass it to its processes.

    To free the CPUs of a stopped group, Train looks for the Ray of this machine. If several run, it fails silently and
    the next group waits forever, unless RAY_ADDRESS names one.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    return {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}


def _trials_at_once(settings: SweepSettings) -> int:
    """How many trials fit on the nodes. A worker must fit on one node; the workers of a group may use several."""
    each = workers(settings).each
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = [min(int(node.get(name, 0) // amount) for name, amount in each.items()) for node in nodes]
    fits = max(sum(slots), _slots_to_come(each) if settings.address else 0) // settings.workers_per_trial
    if fits < 1:
        have = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}s" for name in each)
        need = " and ".join(f"{amount:g} {name}s" for name, amount in each.items())
        raise InputError(
            f"--workers-per-trial {settings.workers_per_trial}: workers of {need} each do not fit; "
            f"the {len(nodes)} nodes have {have} together"
        )
    return min(fits, settings.max_concurrent or fits)


def _slots_to_come(each: Mapping[str, float]) -> int:
    """Workers that fit on an autoscaling cluster at its configured maximum size; 0 for a cluster of fixed size."""
    largest = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return min(int(largest.get(name, 0) // amount) for name, amount in each.items())
