"""Waits until a Ray cluster has all of its nodes: `python -m cluster.wait_for_nodes HOST:PORT NODES [SECONDS]`.

A sweep on a cluster that does not grow counts the places for trials once, at its start.
"""

from __future__ import annotations

import sys
import time

from trainables.common.cluster import NoCluster, answering_nodes
from trainables.common.command import ExitStatus
from trainables.common.errors import InputError


def wait(address: str, nodes: int, seconds: float) -> int:
    """Returns the exit status: 1 if they have not come in that time.

    Raises:
        InputError: the cluster's token is missing or wrong here.
    """
    deadline = time.monotonic() + seconds
    while True:
        alive, why = 0, ""
        try:
            alive = len(answering_nodes(address))
        except NoCluster as error:  # its head is starting
            why = f"; {error}"
        if alive >= nodes:
            return ExitStatus.DONE
        if time.monotonic() > deadline:
            print(f"{address}: {alive} of {nodes} nodes after {seconds:.0f} s{why}", file=sys.stderr)
            return ExitStatus.FAILED
        time.sleep(1)


if __name__ == "__main__":
    _, place, count, *rest = sys.argv
    try:
        raise SystemExit(wait(place, int(count), float(rest[0]) if rest else 300.0))
    except InputError as error:
        print(f"wait_for_nodes: error: {error}", file=sys.stderr)
        raise SystemExit(ExitStatus.INVALID_INPUT) from None
