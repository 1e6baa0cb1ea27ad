"""The version is stated in one place; files that other software reads agree with it and with the changelog."""

from __future__ import annotations

import re

import yaml

from tests.helpers.paths import ROOT
from trainables.common.version import PROJECT, VERSION


def released() -> list[tuple[str, str]]:
    """(version, date) of the releases in the changelog, the newest first."""
    return re.findall(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition(".dev")[0]))


def test_citation_names_the_latest_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version, date = released()[0]
    assert citation["version"] == version
    assert str(citation.get("date-released", date)) == date
    assert citation["title"].startswith(f"{PROJECT}: ")


def test_version_is_the_latest_release_or_newer() -> None:
    """A development version is newer, and the changelog has a section for it."""
    releases = released()
    assert releases == sorted(releases, key=lambda release: numbers(release[0]), reverse=True)
    latest = releases[0][0]
    if ".dev" in VERSION:
        assert numbers(VERSION) > numbers(latest)
        assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text()
    else:
        assert latest == VERSION
