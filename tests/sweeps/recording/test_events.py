"""The record of events: what was written is read back; damage costs the damaged lines, and tables are made again."""

from __future__ import annotations

import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.recording.driver_time import DriverTime
from sweeps.recording.events import EVENTS, EventLog, Unpacker, packed
from sweeps.recording.tables import RunTables

EVENT = {"table": "trials", "row": {"id": "t000", "label": 'a "quoted"\n, "crc": "text', "value": 0.1}}


def test_events_come_back(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([EVENT, EVENT])
    EventLog(tmp_path).append([EVENT])
    assert list(log.read()) == [EVENT] * 3


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_a_torn_last_line_is_dropped_and_the_next_line_is_whole(tmp_path: Path, kept: int) -> None:
    log = EventLog(tmp_path)
    log.append([EVENT])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[:kept])
    assert list(EventLog(tmp_path).read()) == [EVENT, None]
    EventLog(tmp_path).append([EVENT])
    assert list(log.read()) == [EVENT, None, EVENT]


def test_a_full_disk_leaves_no_part_of_an_append(tmp_path: Path) -> None:
    """What a report gives is several lines; with one of them on the disk it would count as recorded."""
    log = EventLog(tmp_path)
    log.append([EVENT])
    whole = log.path.read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * len(whole) + 10, unlimited[1]))
    try:
        with pytest.raises(OSError):
            log.append([EVENT] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert log.path.read_bytes() == whole
    log.append([EVENT])
    assert list(log.read()) == [EVENT] * 2


def test_any_changed_byte_costs_its_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([EVENT])
    content = log.path.read_bytes()
    for place in range(len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 0x10
        log.path.write_bytes(bytes(changed))
        assert not any(log.read()), place


def test_columns_are_packed_exactly() -> None:
    columns: dict[str, list[Any]] = {
        "id": ["t0"] * 5,
        "step": [3] * 5,
        "image": [f"cat@{k}" for k in range(5)],
        "single": [0.5 * k for k in range(5)],
        "double": [0.1 * k for k in range(5)],
        "few": [1.0, None, None, None, None],
    }
    unpacker, content = Unpacker(), packed(columns)
    assert {name: unpacker.values(column) for name, column in content.items()} == columns
    assert (unpacker.constant(content["id"]), unpacker.constant(content["step"])) == ("t0", 3)


def recorded(folder: Path) -> RunTables:
    tables = RunTables(folder)
    tables.upsert_trial({"id": "t000", "status": "finished", "seed": 3, "val/psnr": 20.0, "config/x": 0.1})
    tables.upsert_trial({"id": "t001", "status": "running", "seed": 3})
    for step in (1, 2):
        tables.add_report({"id": "t000", "step": step, "val/psnr": 18.0 + step, "wall_seconds": 1.0})
        tables.add_per_image([{"id": "t000", "step": step, "image": f"cat@{k}", "val/psnr": 20.0 + k} for k in (0, 1)])
        tables.flush(force=True)
    tables.upsert_trial({"id": "t001", "status": "stopped"})
    tables.upsert_trial({"id": "c000", "kind": "confirmation", "status": "finished", "seed": 10003, "test/psnr": 19.0})
    for split, name in (("validation", "val/psnr"), ("test", "test/psnr")):
        images = [{"id": "c000", "split": split, "step": 2, "image": f"dog@{k}", name: 19.0 + k} for k in (0, 1)]
        tables.add_per_image(images)
    tables.flush(force=True)
    return tables


def contents(tables: RunTables) -> tuple[Any, ...]:
    images = sorted(tables.per_image, key=lambda row: (row["id"], row["split"], row["image"]))  # any order is right
    return tables.leaderboard, tables.history, images


def test_deleted_and_damaged_tables_are_made_again(tmp_path: Path) -> None:
    recorded(tmp_path)
    expected = contents(RunTables(tmp_path).load())
    before = {name: (tmp_path / name).read_bytes() for name in ("leaderboard.parquet", "history.parquet")}
    (tmp_path / "leaderboard.parquet").unlink()
    (tmp_path / "history.parquet").write_bytes(before["history.parquet"][:-20])
    tables = RunTables(tmp_path).load()
    tables.flush(force=True)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert contents(RunTables(tmp_path).load()) == expected  # those of images in any order


def test_a_deleted_record_is_made_again_from_the_tables(tmp_path: Path) -> None:
    recorded(tmp_path)
    expected = contents(RunTables(tmp_path).load())
    (tmp_path / EVENTS).unlink()
    tables = RunTables(tmp_path).load()
    assert contents(tables) == expected
    tables.upsert_trial({"id": "t002", "status": "running"})
    tables.commit()
    events = [event for event in EventLog(tmp_path).read() if event is not None]
    assert {event["row"].get("id") for event in events if event["table"] == "trials"} == {
        "t000", "t001", "t002", "c000",
    }  # fmt: skip


@pytest.mark.parametrize("how", ["garbled", "missing"])
def test_a_lost_start_of_a_trial_comes_from_the_tables(tmp_path: Path, how: str) -> None:
    """Its kind, label and seed; the lines after it are whole."""
    tables = RunTables(tmp_path)
    start = {"kind": "confirmation", "label": "best", "status": "running", "seed": 10_001, "config/x": 0.2}
    tables.upsert_trial({"id": "c001", **start})
    tables.commit()
    tables.add_report({"id": "c001", "step": 2, "val/psnr": 20.0})
    tables.upsert_trial({"id": "c001", "steps": 2, "val/psnr": 20.0})
    tables.upsert_trial({"id": "c001", "status": "finished"})
    tables.flush(force=True)
    expected = contents(RunTables(tmp_path).load())
    others = (tmp_path / EVENTS).read_bytes().splitlines(keepends=True)[1:]
    (tmp_path / EVENTS).write_bytes(b"".join([*([b"#" * 80 + b"\n"] if how == "garbled" else []), *others]))
    loaded = RunTables(tmp_path).load()
    assert contents(loaded) == expected
    loaded.upsert_trial({"id": "c001", "error": ""})
    loaded.flush(force=True)
    (row,) = RunTables(tmp_path).load().leaderboard
    assert {name: row[name] for name in start} == {**start, "status": "finished"}


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_record_is_completed_from_the_tables(tmp_path: Path, seed: int) -> None:
    recorded(tmp_path)
    expected = contents(RunTables(tmp_path).load())
    content = bytearray((tmp_path / EVENTS).read_bytes())
    place = random.Random(seed).randrange(len(content))
    content[place : place + 30] = bytes(len(content[place : place + 30]))
    (tmp_path / EVENTS).write_bytes(bytes(content))
    tables = RunTables(tmp_path).load()
    assert contents(tables) == expected
    assert len(tables.notes) == 1 and "dropped" in tables.notes[0]
    tables.upsert_trial({"id": "t001", "error": ""})
    tables.flush(force=True)
    assert RunTables(tmp_path).load().notes == []


def test_a_lost_report_of_a_trial_that_ended_comes_from_the_tables(tmp_path: Path) -> None:
    """The line with its end is there: it has no metrics."""
    tables = RunTables(tmp_path)
    for step in (1, 2):
        tables.upsert_trial({"id": "t000", "status": "running", "steps": step, "val/psnr": 20.0 + step})
        tables.add_report({"id": "t000", "step": step, "val/psnr": 20.0 + step})
        tables.commit()
    tables.upsert_trial({"id": "t000", "status": "finished"})
    tables.flush(force=True)
    expected = contents(RunTables(tmp_path).load())
    lines = (tmp_path / EVENTS).read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        damaged = [b"damaged\n" if k == number else line for k, line in enumerate(lines)]
        (tmp_path / EVENTS).write_bytes(b"".join(damaged))
        assert contents(RunTables(tmp_path).load()) == expected, number


@pytest.mark.parametrize(
    "event",
    [
        {"table": "trials", "row": {"id": "../../elsewhere", "status": "finished"}},
        {"table": "trials", "row": {"id": ".hidden"}},
        {"table": "reports", "row": {"id": "t000"}},
        {"table": "images", "row": {"id": {"zlib": "AAAA"}}},
        {"table": "images", "row": {"id": {"f4": "AAAA"}, "step": 1}},
        {"table": "other", "row": {"id": "t000"}},
        {"other": 1},
    ],
)
def test_whole_lines_that_say_something_else_are_dropped(tmp_path: Path, event: dict[str, Any]) -> None:
    EventLog(tmp_path).append([{"table": "trials", "row": {"id": "t001"}}, event])
    tables = RunTables(tmp_path).load()
    assert [row["id"] for row in tables.leaderboard] == ["t001"]
    assert tables.notes == ["events.jsonl: 1 damaged line was dropped"]


def test_seconds_of_all_drivers_come_back(tmp_path: Path) -> None:
    """One trial's seconds say nothing about it: a driver also prepares, and runs trials at once."""
    times = []
    for seconds in (100.0, 50.0):
        tables = RunTables(tmp_path).load()
        times.append(tables.drivers.spent)
        tables.drivers.begin(time.monotonic() - seconds)
        tables.upsert_trial({"id": "t000", "status": "running", "wall_seconds": 3.0})
        tables.flush(force=True)
        tables.upsert_trial({"id": "t000", "status": "interrupted"})
        tables.flush(force=True)  # and no other word: it was killed
    spent = RunTables(tmp_path).load().drivers.spent
    assert times[0] is None and times[1] is not None and spent is not None
    assert (times[1], spent) == (pytest.approx(100.0, abs=5.0), pytest.approx(150.0, abs=5.0))  # a slow machine


def test_seconds_are_recorded_while_nothing_else_is() -> None:
    """Once a minute, so that a killed driver has not lost an hour in which one trial trained without a report."""
    now = [0.0]
    drivers = DriverTime(lambda: now[0])
    assert drivers.events(force=True) == []  # of a reader
    drivers.begin(-5.0, earlier=20.0)
    assert [event["row"]["seconds"] for event in drivers.events(force=False)] == [20.0, 5.0]
    now[0] = 59.0
    assert drivers.events(force=False) == []
    now[0] = 61.0
    assert [event["row"]["seconds"] for event in drivers.events(force=False)] == [66.0]
    assert drivers.spent == 86.0


def test_a_run_of_an_earlier_version_starts_with_an_estimate(tmp_path: Path) -> None:
    tables = recorded(tmp_path)
    for _ in range(2):
        tables = RunTables(tmp_path).load()
        tables.drivers.begin(time.monotonic(), earlier=80.0)
        tables.commit(force=True)
    assert RunTables(tmp_path).load().drivers.spent == pytest.approx(80.0, abs=5.0)


def test_damaged_seconds_are_dropped(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "d000", "seconds": 7.0}, {"id": "d000"}, {"id": "d000", "seconds": -1.0}]
    rows += [{"id": "d000", "seconds": float("nan")}, {"id": "d000", "seconds": "long"}]
    EventLog(tmp_path).append([{"table": "drivers", "row": row} for row in rows])
    tables = RunTables(tmp_path).load()
    assert tables.drivers.spent == 7.0 and tables.notes == ["events.jsonl: 4 damaged lines were dropped"]
    tables.upsert_trial({"id": "t000"})
    tables.flush(force=True)
    assert RunTables(tmp_path).load().drivers.spent == 7.0
