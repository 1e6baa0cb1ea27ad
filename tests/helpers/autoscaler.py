"""A Ray cluster that grows: Ray's new autoscaler, whose machines are processes of this one.

From a sweep's side it is like cluster/gpu.yaml: a head without CPUs, and no worker yet.
`ray.cluster_utils.AutoscalingCluster` would end every Ray of this machine first.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray

from tests.helpers.ports import free_port

_HEAD = "f" * 51 + "00000"  # the id by which the provider knows its head
_HEAD_TYPE = "ray.head.default"  # the provider expects this name
_COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
_PATIENCE = 120.0


@contextmanager
def growing_cluster(folder: Path, workers: int, with_token: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Starts a head that may add up to so many workers of one CPU, and removes one that was idle for 15 seconds.

    Args:
        with_token: whether it wants one. A process reads its token once, so without it this process may connect too.

    Yields:
        Its address, and the environment with which other processes connect to it.
    """
    port = free_port("")
    address = f"{ray.util.get_node_ip_address()}:{port}"
    # Ray's sockets need a short path.
    temporary = Path("/tmp") / f"grow-{port}"
    temporary.mkdir()
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(_config(address, workers, temporary)), encoding="utf-8")
    token = {"RAY_AUTH_MODE": "disabled"}
    if with_token:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {
        **os.environ,
        **token,
        "PYTHONPATH": str(Path(__file__).parent / "node_provider"),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_NODE_TYPE_NAME": _HEAD_TYPE,
        "RAY_CLOUD_INSTANCE_ID": _HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--block"),
        *("--num-cpus=0", "--num-gpus=0", "--object-store-memory=100000000", "--include-dashboard=false"),
        *(f"--autoscaling-config={config}", f"--temp-dir={temporary}"),
    ]
    with open(folder / "head.log", "wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _PATIENCE
        while b"Ray runtime started" not in (folder / "head.log").read_bytes():
            assert head.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text(
                encoding="utf-8"
            )
            time.sleep(0.2)
        yield address, token
    finally:
        # The workers are processes of the autoscaler, and outlive it.
        started = [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(temporary) in part for part in process.info["cmdline"] or ())
        ]
        head.terminate()
        head.wait(60)
        for process in started:
            with suppress(psutil.Error):  # it has ended meanwhile
                process.kill()
        psutil.wait_procs(started, timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)


def _config(address: str, workers: int, disks: Path) -> dict[str, object]:
    return {
        "cluster_name": "growing",
        "max_workers": workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.25,
        "provider": {
            "type": "external",
            "module": "own_disk.OwnDisk",
            "disks": str(disks),
            "launch_multiple": True,
            "head_node_id": _HEAD,
            "gcs_address": address,
        },
        "available_node_types": {
            _HEAD_TYPE: {"resources": {"CPU": 0, "GPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": workers},
        },
        "head_node_type": _HEAD_TYPE,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in _COMMANDS},
    }
