"""Connecting to a running Ray cluster: checking its address, and sending this project's code to its nodes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from trainables.common.errors import InputError
from trainables.common.paths import ROOT, is_checkout, is_uri

_CONNECT_SECONDS = 5.0
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
    packages.

    Args:
        kept: folders that are not copied, such as results.
    """
    if not is_checkout():  # ROOT then contains other packages too
        return {"py_modules": [str(ROOT / package) for package in _PACKAGES], "excludes": ["**/__pycache__"]}
    folders = (Path(folder).expanduser().absolute() for folder in ("results", *kept) if folder and not is_uri(folder))
    own = [str(folder.relative_to(ROOT)) for folder in folders if ROOT in folder.parents]
    return {"working_dir": str(ROOT), "excludes": [*_NOT_SENT, *own]}
