"""A sweep that stops asks its trials for a checkpoint first: question and answers, in the store of Ray's head.

The keys begin with the id of the Ray job, so that sweeps on one cluster do not hear each other. A head that does not
answer counts as silent: the driver waits for a limited time anyway.
"""

from __future__ import annotations

from contextlib import suppress

import ray
from ray.exceptions import RayError

from trainables.common.cluster import gcs_client
from trainables.training.stop_request import StopRequest

_STORE = b"restoration-sweeps", 2.0
"""Ray's namespace of the keys, and the seconds for an answer of the head."""


def ask() -> None:
    """Asks all trials of this driver for a checkpoint."""
    _put(_key("asked"))


def answered() -> set[str]:
    """The ids of the trials that have answered."""
    start = _key("written/")
    with suppress(RayError):
        return {key.removeprefix(start).decode() for key in gcs_client().internal_kv_keys(start, *_STORE)}
    return set()


def forget() -> None:
    """Removes question and answers: a cluster may live for months."""
    with suppress(RayError):
        gcs_client().internal_kv_del(_key(""), True, *_STORE)


def request_to(trial: str) -> StopRequest:
    """What the driver of this process asks its trial of this id."""
    asked, written = _key("asked"), _key(f"written/{trial}")
    return StopRequest(lambda: _has(asked), lambda: _put(written))


def _has(key: bytes) -> bool:
    with suppress(RayError):
        return bool(gcs_client().internal_kv_exists(key, *_STORE))
    return False


def _put(key: bytes) -> None:
    with suppress(RayError):
        gcs_client().internal_kv_put(key, b"", True, *_STORE)


def _key(name: str) -> bytes:
    return f"stop/{ray.get_runtime_context().get_job_id()}/{name}".encode()
