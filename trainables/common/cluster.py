"""Joining a running Ray cluster: its address and token, and the code and environment that its nodes get.

Ray is imported where a function needs it, because the command line checks addresses before that.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.common.errors import InputError, one_line
from trainables.common.paths import ROOT, is_checkout, is_uri
from trainables.common.units import byte_text

if TYPE_CHECKING:
    import grpc

_CONNECT_SECONDS = 5.0
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a job
_PACKAGES = ("cluster", "search_spaces", "sweeps", "trainables")
_NOT_SENT = [".venv", ".git", "weights", "tests", "docs", "benchmarks", "**/__pycache__"]


class NoCluster(InputError):
    """No Ray cluster answers at an address, or not yet."""


def check_address(address: str) -> None:
    """Refuses an address at which nothing answers. Ray itself would retry for minutes and then end the process.

    Raises:
        InputError: not an address, or no answer.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise InputError(f"--address {address}: expected auto, or HOST:PORT of a Ray cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def join(address: str, runtime_env: Mapping[str, Any] | None = None) -> None:
    """Connects this process to a running cluster, until `ray.shutdown`.

    Args:
        runtime_env: Ray's, such as `shipped_code`.

    Raises:
        NoCluster: nothing answers, this machine is no node of the cluster, or the versions of Ray differ.
        InputError: its token is missing or wrong here, or the code is larger than what Ray sends.
    """
    import ray
    from ray.exceptions import AuthenticationError, RayError

    answering_nodes(address)
    check_upload(address, runtime_env or {})
    joined = ray.is_initialized()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=dict(runtime_env or {}))
    except AuthenticationError:
        raise _wrong_token(address) from None
    except (OSError, RuntimeError, RayError) as error:
        if joined:  # by somebody else, who keeps the connection
            raise
        ray.shutdown()
        why = f"{one_line(error)}: {one_line(error.__cause__)}" if error.__cause__ else one_line(error)
        raise NoCluster(f"--address {address}: cannot join the Ray cluster ({why})") from None


def gcs_client() -> Any:
    """This process's client of the head's own service, which Ray has no public name for."""
    import ray

    return ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]  # set by ray.init


def answering_nodes(address: str, seconds: float = _CONNECT_SECONDS) -> list[str]:
    """The addresses of the nodes that run now, as the head answers within this time.

    Ray itself would try a wrong token for 20 seconds, with lines of its C++ log, and then find no cluster.

    Raises:
        NoCluster: no answer. InputError: the token is missing or wrong.
    """
    import grpc
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
    from ray.exceptions import AuthenticationError

    try:
        head = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(address, error) from None
    if not head:
        raise _no_cluster(address, "none runs on this machine")
    if address == "auto":  # as ray.init does
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    with init_grpc_channel(head, [("grpc.enable_http_proxy", 0)]) as channel:
        service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            request = gcs_service_pb2.GetAllNodeInfoRequest()  # type: ignore[attr-defined]  # generated
            reply = service.GetAllNodeInfo(request, timeout=seconds)
        except AuthenticationError:  # there is none
            raise _wrong_token(address) from None
        except grpc.RpcError as error:
            raise _refused(address, error) from None
    alive = gcs_pb2.GcsNodeInfo.ALIVE  # type: ignore[attr-defined]  # generated
    return [node.node_manager_address for node in reply.node_info_list if node.state == alive]


def _refused(address: str, error: grpc.Call) -> InputError:
    import grpc

    if error.code() == grpc.StatusCode.UNAUTHENTICATED:
        return _wrong_token(address)
    return _no_cluster(address, f"{error.code().name}: {error.details()}")


def _no_cluster(address: str, why: object) -> NoCluster:
    return NoCluster(f"--address {address}: no Ray cluster to connect to ({one_line(why)})")


def _wrong_token(address: str) -> InputError:
    mode = os.environ.get("RAY_AUTH_MODE")
    return InputError(
        f"--address {address}: the cluster's token is missing or wrong here; expected RAY_AUTH_MODE=token "
        f"({f'it is {mode!r}' if mode else 'it is not set'}), and the token with which the cluster was started in "
        "RAY_AUTH_TOKEN or in ~/.ray/auth_token"
    )


def shipped_code(*kept: str) -> dict[str, Any]:
    """The `runtime_env` with which Ray copies this project's code to a cluster's nodes: the checkout, or the installed
    packages. Empty in a Ray job with a working directory, which Ray has copied already.

    Args:
        kept: folders that are not copied, such as results.
    """
    if job_folder():
        return {}
    if not is_checkout():  # ROOT then contains other packages too
        return {"py_modules": [str(ROOT / package) for package in _PACKAGES], "excludes": ["**/__pycache__"]}
    folders = (Path(folder).expanduser().absolute() for folder in ("results", *kept) if folder and not is_uri(folder))
    own = [str(folder.relative_to(ROOT)) for folder in folders if ROOT in folder.parents]
    return {"working_dir": str(ROOT), "excludes": [*_NOT_SENT, *own]}


def check_upload(address: str, runtime_env: Mapping[str, Any]) -> None:
    """Refuses code that Ray would refuse to send to the nodes, after it has packed it.

    Raises:
        InputError: names the folder or file that is large.
    """
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    if not (folder := runtime_env.get("working_dir")):
        return
    root, sizes = Path(folder), sent_bytes(runtime_env)
    if sizes[root] < GCS_STORAGE_MAX_SIZE:
        return
    large = root
    while below := {path: size for path, size in sizes.items() if path.parent == large}:
        largest = max(below, key=lambda path: below[path])
        if large != root and 2 * below[largest] < sizes[root]:
            break
        large = largest
    raise InputError(
        f"--address {address}: {root} has {byte_text(sizes[root])}, and Ray sends at most "
        f"{byte_text(GCS_STORAGE_MAX_SIZE)} to the nodes; {byte_text(sizes[large])} are in {large}: move it out of the "
        "repository, or name it in .gitignore"
    )


def sent_bytes(runtime_env: Mapping[str, Any]) -> Counter[Path]:
    """The files and folders of a `runtime_env` that Ray packs, without compression -> the bytes that they have."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    root, sizes = Path(runtime_env["working_dir"]), Counter[Path]()

    def add(path: Path) -> None:
        if path.is_file():
            size = path.stat().st_size
            sizes.update({place: size for place in (path, *path.parents) if place == root or root in place.parents})

    excluded = _get_excludes(root, [*get_runtime_env_default_excludes(), *runtime_env["excludes"]])
    quiet = logging.getLogger(__name__)  # Ray's own would say on the terminal which files it leaves out
    _dir_travel(root, [excluded], add, os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1", quiet)
    return sizes


def job_folder() -> Path | None:
    """The working directory of the Ray job in which this process runs (`ray job submit --working-dir`), if it is one.
    Ray deletes it after the job."""
    job = json.loads(os.environ.get(_JOB, "{}"))
    return Path.cwd() if job.get("runtime_env", {}).get("working_dir") else None


def refuse_job_folder(flag: str, folder: str) -> None:
    """Refuses a folder that would be deleted with the Ray job in which this process runs.

    Raises:
        InputError: naming the flag and the folder.
    """
    own, path = job_folder(), Path(folder).expanduser().absolute()
    if own and (path == own or own in path.parents):
        raise InputError(
            f"{flag} {folder}: inside the working directory of this Ray job, which Ray deletes; give an absolute path "
            "that all nodes share"
        )
