"""Notices of a cloud that it takes this machine back, asked from the address that it has for its machines.

| cloud | asked | time left |
|---|---|---|
| AWS, spot | IMDSv2, `latest/meta-data/spot/instance-action` | 2 minutes |
| Google, spot and preemptible | `computeMetadata/v1/instance/preempted` | 30 seconds |

The address can be changed with the variables of the clouds' own tools: AWS_EC2_METADATA_SERVICE_ENDPOINT (a URL;
AWS_EC2_METADATA_DISABLED=true asks nothing), and GCE_METADATA_HOST (HOST or HOST:PORT).
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException

EVERY = 5.0
"""Seconds between two questions, as AWS recommends."""
_SECONDS = 1.0  # for an answer; the address is inside the machine
_TOKEN_SECONDS = 21600
_GOOGLE_LEFT = 30.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach the address


@dataclass(frozen=True)
class Notice:
    """A machine will be taken back.

    Attributes:
        reason: a part of a sentence.
        deadline: seconds since 1970.
    """

    reason: str
    deadline: float


class Cloud(ABC):
    """The metadata service of a cloud. Its methods raise OSError if it does not answer."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether this machine is one of this cloud."""

    @abstractmethod
    def notice(self) -> Notice | None:
        """None if the machine stays."""


class AWS(Cloud):
    def __init__(self) -> None:
        self._address = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
        self._token = ""

    def answers(self) -> bool:
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return False
        return bool(self._renewed())

    def _renewed(self) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        status, self._token = _ask(f"{self._address}/latest/api/token", lifetime, "PUT")
        return self._token if status == 200 else ""

    def notice(self) -> Notice | None:
        for _ in range(2):
            place = f"{self._address}/latest/meta-data/spot/instance-action"
            status, text = _ask(place, {"X-aws-ec2-metadata-token": self._token})
            if status != 401:  # else the token has expired
                break
            self._renewed()
        if status != 200:  # 404: no notice
            return None
        action = json.loads(text)
        at = datetime.fromisoformat(action["time"]).timestamp()
        return Notice(f"AWS will {action['action']} this spot machine", at)


class Google(Cloud):
    def __init__(self) -> None:
        self._address = f"http://{os.environ.get('GCE_METADATA_HOST', '169.254.169.254')}/computeMetadata/v1/instance"

    def _preempted(self) -> str:
        status, text = _ask(f"{self._address}/preempted", {"Metadata-Flavor": "Google"})
        return text.strip() if status == 200 else ""

    def answers(self) -> bool:
        return self._preempted() in ("TRUE", "FALSE")

    def notice(self) -> Notice | None:
        preempted = self._preempted() == "TRUE"
        return Notice("Google preempts this machine", time.time() + _GOOGLE_LEFT) if preempted else None


def _ask(address: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
    """Status and text of an answer."""
    request = urllib.request.Request(address, headers=dict(headers), method=method)
    try:
        with _DIRECT.open(request, timeout=_SECONDS) as answer:
            return answer.status, answer.read(10_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except HTTPException as error:
        raise OSError(str(error)) from None


def this_cloud() -> Cloud | None:
    """The cloud of this machine; None if none answers."""
    for cloud in (AWS(), Google()):
        with suppress(OSError):
            if cloud.answers():
                return cloud
    return None


class MachineWatch:
    """A thread that notices that this machine will be taken away.

    Args:
        drain: called once with a cloud's notice, to make the machine take no more work.
        draining: whether the machine takes no more work, whoever has decided it.
    """

    def __init__(self, drain: Callable[[Notice], None], draining: Callable[[], bool]) -> None:
        self._drain, self._draining = drain, draining
        self._leaving = threading.Event()
        threading.Thread(target=self._watch, name="machine-watch", daemon=True).start()

    def leaving(self) -> bool:
        """Whether work should go to another machine now."""
        return self._leaving.is_set()

    def _watch(self) -> None:
        cloud = this_cloud()
        while not self._leaving.is_set():
            # A service or a Ray that does not answer now is asked again; an answer in no known form says nothing.
            with suppress(OSError, RuntimeError, ValueError, KeyError):
                if cloud and (notice := cloud.notice()):
                    self._drain(notice)
                    cloud = None
                if self._draining():
                    self._leaving.set()
            time.sleep(EVERY)
