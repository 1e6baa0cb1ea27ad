"""Waits until a Ray cluster has all of its nodes: `python cluster/wait_for_nodes.py HOST:PORT NODES [SECONDS]`.

A sweep on a cluster that does not grow counts the places for trials once, at its start.
"""

from __future__ import annotations

import logging
import sys
import time

import ray


def wait(address: str, nodes: int, seconds: float) -> int:
    """Returns the exit status: 1 if they have not come in that time."""
    deadline = time.monotonic() + seconds
    alive = 0
    while True:
        try:
            if not ray.is_initialized():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            alive = sum(node["Alive"] for node in ray.nodes())
        except (ConnectionError, RuntimeError):  # its head is starting
            pass
        if alive >= nodes:
            return 0
        if time.monotonic() > deadline:
            print(f"{address}: {alive} of {nodes} nodes after {seconds:.0f} s", file=sys.stderr)
            return 1
        time.sleep(1)


if __name__ == "__main__":
    _, place, count, *rest = sys.argv
    raise SystemExit(wait(place, int(count), float(rest[0]) if rest else 300.0))
