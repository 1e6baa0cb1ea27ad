"""A Ray of this machine alone, that ends with this process."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import parameter as ray_parameter
from ray._private import worker as ray_worker
from ray._private.node import Node

from trainables.common.command import end_on_sigterm
from trainables.common.errors import CannotRun, one_line
from trainables.common.paths import ROOT
from trainables.common.ray_watch import RayWatch, end_children, kill
from trainables.common.session_folder import session_folder

_ATTEMPTS = 4
_OBJECT_STORE_BYTES = 100 * 2**20  # results are small and data is memory-mapped: the object store is almost empty


@contextmanager
def local_ray(cpus: int, gpus: int | None, lost: Callable[[str], None], groups: bool = False) -> Iterator[None]:
    """Starts a Ray whose processes inherit this process's environment; ends it and them at the end.

    Args:
        gpus: None: Ray counts them.
        lost: called with the reason before this process ends because Ray has ended.
        groups: whether Train's worker groups will run.

    Raises:
        CannotRun: Ray does not start.
        InputError: `TMPDIR` cannot be used.
    """
    # Ray would write a token into HOME, where others may read it, and fail if that cannot be written. It reads the
    # variable once per process, so it stays as it is.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if ray.is_initialized():
        raise CannotRun("this process is connected to a Ray already; call ray.shutdown() first")
    with session_folder() as folder:
        for attempt in range(_ATTEMPTS):
            try:
                _start(cpus, gpus, groups, folder)
                break
            except Exception as error:  # Ray raises plain ones too
                _end()
                end_children()
                # Its own limit of 30 s is too short on a busy machine.
                if "timed out" not in str(error) or attempt == _ATTEMPTS - 1:
                    raise CannotRun(f"Ray does not start in {folder} ({one_line(error)})") from None
            except BaseException:  # Ctrl-C
                _end()
                raise
        watch = RayWatch(lost, folder.parent)
        try:
            yield
        finally:
            watch.close()
            _end()


@contextmanager
def messages_to(keep: Callable[[str], None]) -> Iterator[None]:
    """Calls `keep` with each line that Ray's nodes tell the driver. When a process of Ray ends, that is dozens of lines
    of its C++ log, which Ray prints on the terminal, in the middle of the progress.
    """
    printed = ray_worker.print_to_stdstream

    def told(data: Any, ignore_prefix: bool) -> None:
        for line in "\n".join(data["lines"]).splitlines():
            keep(line.rstrip())

    ray_worker.print_to_stdstream = told
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = printed


def _start(cpus: int, gpus: int | None, groups: bool, folder: Path) -> None:
    # SIGTERM often goes to all processes of a job, SIGHUP to all of a closed terminal. Ray's inherit this, so that the
    # driver can end them in order.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    # Workers import this project, also if it is not installed and the driver runs in another folder.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, **(_chosen_address() if groups else {})}
    earlier = {name: os.environ.get(name) for name in own}
    try:
        os.environ.update(own)
        with _needed_processes_only(dashboard=groups):
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                # Train frees the resources of a stopped worker group through the dashboard's state API.
                include_dashboard=groups,
                dashboard_host="127.0.0.1",
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
    finally:
        # Ray has replaced the handler: a signal that came meanwhile would end this process without a message.
        end_on_sigterm()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _needed_processes_only(dashboard: bool) -> Iterator[None]:
    """Leaves out what Ray would start beside its servers, and `ray.init` has no flag for: the monitor of an autoscaler,
    the reader of logs for the driver, and without a dashboard the process that only sends statistics of use. Each is a
    process of Python with some 100 MB, and `ray.init` waits for the last one.
    """
    params, start_api_server = ray_parameter.RayParams, Node.start_api_server
    left_out: dict[str, Any] = {"include_log_monitor": False, "no_monitor": True}
    try:
        ray_parameter.RayParams = functools.partial(params, **left_out)  # type: ignore[misc, assignment]
        if not dashboard:
            Node.start_api_server = lambda self, **how: None  # type: ignore[method-assign]
        yield
    finally:
        ray_parameter.RayParams, Node.start_api_server = params, start_api_server  # type: ignore[misc, method-assign]


def _end() -> None:
    """Ray would ask each of its processes to end, and wait a second for it. They do not hear that: they block
    SIGTERM, see `_start`. So they are killed at once, and then what they have started: agents of a killed raylet wait
    for it a while.
    """
    below: list[psutil.Process] = []
    if node := ray_worker._global_node:
        for _, process in node.live_processes():
            with suppress(psutil.Error):
                below += psutil.Process(process.pid).children(recursive=True)
        end_node = node.kill_all_processes
        node.kill_all_processes = lambda **how: end_node(**{**how, "allow_graceful": False})
    try:
        ray.shutdown()
    finally:
        kill(below)
        psutil.wait_procs(below, timeout=2)


def _chosen_address() -> dict[str, str]:
    """The environment variables that set the address of our Ray and pass it to its processes.

    To free the CPUs of a stopped group, Train looks for the Ray of this machine. If several run, it fails silently and
    the next group waits forever, unless RAY_ADDRESS names one.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    return {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
