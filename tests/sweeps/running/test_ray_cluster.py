"""The environment in which Ray runs."""

from __future__ import annotations

import os

import pytest
from ray._private.utils import update_envs

from sweeps.running.ray_cluster import added_on_nodes, without_proxy

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *(name.upper() for name in NAMES)):
        monkeypatch.setenv(name, "")  # so that what Ray sets is removed again
        monkeypatch.delenv(name)


def test_without_a_proxy_nothing_is_set() -> None:
    assert without_proxy("10.0.0.1") == {}


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_ray_is_reached_without_the_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "example.org,localhost")
    expected = "example.org,localhost,127.0.0.1,10.0.0.1"
    assert without_proxy("10.0.0.1") == {"no_proxy": expected, "NO_PROXY": expected}


@pytest.mark.parametrize(("own", "expected"), [(".inside", [".inside"]), (None, [])])
def test_exceptions_of_a_node_stay(own: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    sent = added_on_nodes(without_proxy("10.0.0.1"))
    if own:
        monkeypatch.setenv("NO_PROXY", own)
    update_envs(sent)  # as in a process that Ray starts
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ[name].split(",") if host]
        assert list(dict.fromkeys(hosts)) == [*expected, "127.0.0.1", "localhost", "10.0.0.1"]
