"""The report of a running sweep: there from the first result on, made again seldom enough, never the end of a sweep."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.answering import live
from sweeps.answering.live import EVERY, SHARE, LiveReport
from sweeps.planning.plan import make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from sweeps.recording.progress import Progress
from sweeps.recording.tables import RunTables


class Clock:
    """Seconds; every reading may take some."""

    def __init__(self) -> None:
        self.now, self.each = 100.0, 0.0

    def monotonic(self) -> float:
        self.now += self.each
        return self.now

    def __getattr__(self, name: str) -> Any:
        import time

        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(live, "time", found)
    return found


@pytest.fixture
def report(tmp_path: Path) -> LiveReport:
    tables = RunTables(tmp_path)
    tables.upsert_trial({"id": "bicubic", "kind": "control", "status": "control", "val/psnr": 20.0})
    asked = SweepSettings("lora", perceptual="none", results=str(tmp_path), store=str(tmp_path))
    plan = make_plan(resolve(asked), only_printed=True)
    progress = Progress(3, 1, 100, 1, ("val/psnr",))
    return LiveReport(plan, tmp_path, SimpleNamespace(tables=tables, progress=progress, stopped=""))  # type: ignore[arg-type]


def state(folder: Path) -> dict[str, Any]:
    text = (folder / "report" / "state.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("sweepState(").removesuffix(");\n"))  # type: ignore[no-any-return]


def trial(report: LiveReport, id: str, step: int, value: float, status: str = "running") -> None:
    tables = report._recorder.tables
    label = "base" if id == "t000" else ""
    row = {"id": id, "label": label, "status": status, "steps": step, "val/psnr": value, "config/pix2pix.l1": 1.0}
    tables.upsert_trial(row)
    tables.add_report({"id": id, "step": step, "val/psnr": value})


def test_page_exists_from_the_first_result_on(report: LiveReport, tmp_path: Path, clock: Clock) -> None:
    report.update()
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "No trial has finished yet." in page and "bicubic" in page and 'data-running="1"' in page
    first = state(tmp_path)
    assert (
        first["running"] and "0 of 3 trials ended" in first["status"] and f'data-version="{first["version"]}"' in page
    )

    trial(report, "t000", 100, 22.0, "finished")
    trial(report, "t001", 50, 21.0)
    report.update()
    assert state(tmp_path) == first  # too soon
    clock.now += EVERY
    report.update()
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Nothing is called better: the sweep is still running." in page and "t001" in page
    assert state(tmp_path)["version"] != first["version"]

    report.stopped("Stopped: the disk is full.")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Stopped: the disk is full." in page and 'data-running="0"' in page and not state(tmp_path)["running"]


def test_slow_reports_are_made_less_often(report: LiveReport, tmp_path: Path, clock: Clock) -> None:
    """However many trials there are, reports take a small share of the driver's time."""
    clock.each = 6.0  # so long does a report take by this clock
    made, started = [], clock.now
    for _ in range(200):
        report.update()
        made.append(state(tmp_path)["version"])
    assert 6.0 * len(set(made)) <= 1.5 * SHARE * (clock.now - started)


class _Lines(logging.Handler):
    """Keeps the lines of the sweep's log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_report_that_cannot_be_made_costs_one_line(report: LiveReport, clock: Clock) -> None:
    report._plan = replace(report._plan, objective="val/none")
    log, kept = logging.getLogger("sweep"), _Lines()
    log.addHandler(kept)
    log.setLevel(logging.INFO)
    try:
        for _ in range(3):
            report.update()
            clock.now += 1000
    finally:
        log.removeHandler(kept)
    (line,) = kept.lines
    assert line.startswith("note       report: not made (objective 'val/none' is in no leaderboard row")
