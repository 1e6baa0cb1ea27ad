"""Ports for servers of tests."""

from __future__ import annotations

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """One that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
