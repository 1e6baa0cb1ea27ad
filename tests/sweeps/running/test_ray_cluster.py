"""The environment in which Ray runs."""

from __future__ import annotations

import pytest

from sweeps.running.ray_cluster import without_proxy

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_without_a_proxy_nothing_is_set() -> None:
    assert without_proxy("10.0.0.1") == {}


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_ray_is_reached_without_the_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "example.org,localhost")
    expected = "example.org,localhost,127.0.0.1,10.0.0.1"
    assert without_proxy("10.0.0.1") == {"no_proxy": expected, "NO_PROXY": expected}
