"""Connecting to a running Ray cluster: checking its address, and sending this project's code to its nodes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from trainables.common.errors import InputError
from trainables.common.paths import ROOT, is_checkout, is_uri

_CONNECT_SECONDS = 5.0
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a job
_PACKAGES = ("cluster", "search_spaces", "sweeps", "trainables")
_NOT_SENT = [".venv", ".git", "weights", "tests", "docs", "benchmarks", "**/__pycache__"]


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
        raise InputError(f"--address {address}: no Ray cluster to connect to ({error})") from None


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
