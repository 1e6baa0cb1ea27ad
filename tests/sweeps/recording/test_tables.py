"""The tables of a run folder are read back as written, at any time, by other processes, after restarts."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray.tune.experiment import Trial

from sweeps.formatting import measured_step
from sweeps.recording.progress import log_to, logger
from sweeps.recording.recorder import MAX_FAILURES, Recorder, RecorderSettings
from sweeps.recording.tables import RunTables, plain_value, read_rows
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, LABEL, PARAMETERS, SEED, TRIAL
from tests.helpers.tensorboard import scalars
from trainables.pretrained.finished_trial import CHECKSUMS
from trainables.training.measurements import Validation, encode_png
from trainables.training.reporting import Report
from trainables.training.results import BEST, CHECKPOINT, NOT_WRITTEN, TEST, VALIDATION, payload


def column_types(path: Path) -> dict[str, str]:
    return {field.name: str(field.type) for field in pq.read_schema(path)}


def test_rows_come_back_after_a_restart(tmp_path: Path) -> None:
    tables = RunTables(tmp_path)
    tables.upsert_trial({"id": "t000", "label": "1:1:1", "seed": 3, "config/sinsr.inversion": 0.1})
    tables.upsert_trial({"id": "bicubic", "kind": "control", "status": "control", "val/psnr": 24.5})
    tables.add_report({"id": "t000", "step": 200, "val/psnr": 25.0, "loss/distillation": 0.5})
    tables.add_report({"id": "t000", "step": 100, "val/psnr": 24.0, "train/learning_rate": 1e-4})
    tables.add_per_image([{"id": "t000", "step": 200, "image": "chelsea@064,128", "val/psnr": 25.0}])
    tables.flush(force=True)

    again = RunTables(tmp_path).load()
    trial, control = again.leaderboard
    assert (trial["id"], trial["status"], trial["seed"], trial["config/sinsr.inversion"]) == (
        "t000",
        "running",
        3,
        0.1,
    )
    assert trial["val/psnr"] is None and control["config/sinsr.inversion"] is None
    assert [(row["step"], row["val/psnr"], row.get("loss/distillation")) for row in again.history] == [
        (100, 24.0, None),
        (200, 25.0, 0.5),
    ]
    assert again.per_image[0]["image"] == "chelsea@064,128"

    again.upsert_trial({"id": "t000", "status": "finished", "val/psnr": 25.0})
    again.flush(force=True)
    row = RunTables(tmp_path).load().leaderboard[0]
    assert (row["status"], row["label"], row["val/psnr"]) == ("finished", "1:1:1", 25.0)


def test_a_repeated_report_replaces_the_first(tmp_path: Path) -> None:
    tables = RunTables(tmp_path)
    tables.add_report({"id": "t000", "step": 100, "val/psnr": 1.0, "loss/old": 5.0})
    tables.flush(force=True)
    tables = RunTables(tmp_path).load()
    tables.add_report({"id": "t000", "step": np.int64(100), "val/psnr": np.float32(2.0)})
    assert [(row["step"], row["val/psnr"]) for row in tables.history] == [(100, 2.0)]
    assert tables.history[0].get("loss/old") is None


def test_per_image_keeps_the_newest_step_of_a_trial(tmp_path: Path) -> None:
    def rows(step: int, value: float, images: str = "ab") -> list[dict[str, object]]:
        return [{"id": "t0", "step": step, "image": image, "val/psnr": value} for image in images]

    tables = RunTables(tmp_path)
    tables.add_per_image(rows(200, 1.0))
    tables.add_per_image(rows(100, 9.0))  # older: the trial restarted from an earlier checkpoint
    assert {(r["image"], r["step"], r["val/psnr"]) for r in tables.per_image} == {
        ("a", 200, 1.0),
        ("b", 200, 1.0),
    }
    tables.add_per_image(rows(200, 2.0, "b"))
    assert {(r["image"], r["val/psnr"]) for r in tables.per_image} == {("a", 1.0), ("b", 2.0)}
    tables.add_per_image(rows(300, 3.0, "c"))
    assert [(r["image"], r["step"]) for r in tables.per_image] == [("c", 300)]


def test_every_type_of_a_configuration_is_stored(tmp_path: Path) -> None:
    tables = RunTables(tmp_path)
    first = {
        "a": np.float32(0.5),
        "b": True,
        "c": None,
        "d": (1, 2),
        "e": 1,
        "f": 1,
        "g": 2**70,
        "h": np.bool_(False),
    }
    second = {
        "a": 1,
        "b": False,
        "c": None,
        "d": [np.int64(3)],
        "e": "x",
        "f": np.int32(2),
        "g": 1,
        "h": None,
    }
    for index, config in enumerate((first, second)):
        tables.upsert_trial({"id": f"t{index}", **{f"config/{name}": value for name, value in config.items()}})
    tables.flush(force=True)

    types = column_types(tmp_path / "leaderboard.parquet")
    kinds = {name: types[f"config/{name}"] for name in first}
    assert kinds == {
        "a": "double", "b": "bool", "c": "string", "d": "string",
        "e": "string", "f": "int64", "g": "string", "h": "bool",
    }  # fmt: skip
    stored = [[row[f"config/{name}"] for name in first] for row in read_rows(tmp_path / "leaderboard.parquet")]
    assert stored == [
        [0.5, True, None, "[1, 2]", "1", 1, str(2**70), False],
        [1.0, False, None, "[3]", "x", 2, "1", None],
    ]

    # A resumed run writes the same trials again: nothing changes.
    again = RunTables(tmp_path).load()
    again.upsert_trial({"id": "t1", **{f"config/{name}": value for name, value in second.items()}})
    again.flush(force=True)
    assert column_types(tmp_path / "leaderboard.parquet") == types
    assert [row["config/d"] for row in RunTables(tmp_path).load().leaderboard] == ["[1, 2]", "[3]"]


def test_metrics_stay_numbers(tmp_path: Path) -> None:
    tables = RunTables(tmp_path)
    tables.upsert_trial({"id": "t0", "val/psnr": None})
    tables.add_report({"id": "t0", "step": 1, "val/psnr": float("nan"), "loss/x": np.float16(1), "train/n": 3})
    tables.flush(force=True)
    assert column_types(tmp_path / "leaderboard.parquet")["val/psnr"] == "double"
    history = column_types(tmp_path / "history.parquet")
    assert {history[name] for name in ("val/psnr", "loss/x", "train/n")} == {"double"}
    assert np.isnan(RunTables(tmp_path).load().history[0]["val/psnr"])


def test_csv_has_the_same_rows(tmp_path: Path) -> None:
    tables = RunTables(tmp_path)
    tables.upsert_trial({"id": "t0", "label": 'a "quoted", label', "error": "", "val/psnr": 1.5, "config/x": 0.1})
    tables.flush(force=True)
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["id"], row["label"], row["val/psnr"], row["config/x"]) == (
        "t0",
        'a "quoted", label',
        "1.5",
        "0.1",
    )


def test_flush_waits_unless_forced(tmp_path: Path) -> None:
    tables = RunTables(tmp_path, flush_seconds=3600)
    tables.upsert_trial({"id": "t0", "steps": 1})
    assert tables.flush()
    tables.upsert_trial({"id": "t0", "steps": 2})
    assert not tables.flush()
    assert read_rows(tmp_path / "leaderboard.parquet")[0]["steps"] == 1
    assert RunTables(tmp_path).load().leaderboard[0]["steps"] == 2  # the change is in the record of events
    assert tables.flush(force=True)
    assert RunTables(tmp_path).load().leaderboard[0]["steps"] == 2
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_reader_never_sees_a_partial_table(tmp_path: Path) -> None:
    tables = RunTables(tmp_path, flush_seconds=0.0)
    tables.add_report({"id": "t0", "step": 0, "val/psnr": 0.0})
    tables.flush()
    done = threading.Event()

    def read() -> list[int]:
        lengths = []
        while not done.is_set():
            lengths.append(len(read_rows(tmp_path / "history.parquet")))
        return lengths

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for step in range(1, 300):
            tables.add_report({"id": "t0", "step": step, "val/psnr": float(step)})
            tables.flush()
        done.set()
        lengths = reading.result()
    assert lengths == sorted(lengths) and len(set(lengths)) > 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "x"}, "'id'"),
        ({"id": "t0", "status": "done"}, "'done' is not one of running, finished"),
        ({"id": "t0", "kind": "teacher"}, "'teacher' is not one of trial, confirmation, control"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, row: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunTables(tmp_path).upsert_trial(row)


def test_missing_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'step'"):
        RunTables(tmp_path).add_report({"id": "t0"})
    with pytest.raises(ValueError, match="'image'"):
        RunTables(tmp_path).add_per_image([{"id": "t0", "step": 1}])


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    tables = RunTables(tmp_path)
    tables.add_report({"id": "t0", "step": 1})
    tables.flush(force=True)
    (tmp_path / "events.jsonl").unlink()  # as in a run of version 0.1
    path = tmp_path / "history.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"history\.parquet: not a readable Parquet table"):
        RunTables(tmp_path).load()


def test_plain_values() -> None:
    assert plain_value(np.float64(0.25)) == 0.25 and type(plain_value(np.float64(0.25))) is float
    assert type(plain_value(np.bool_(True))) is bool
    assert plain_value({"a": (1, np.int64(2))}) == '{"a": [1, 2]}'
    assert plain_value(np.arange(2)) == "[0, 1]"
    assert plain_value(Path("a/b")) == "a/b"


# --- tables and log of the recorder -------------------------------------------------------------------------


def measured(
    step: int, seconds: float, repeated: bool = False, psnr: float = 22.0, test: Validation | None = None
) -> dict[str, Any]:
    """The result of a report as Tune passes it to callbacks. `seconds`: time per training step."""
    validation = Validation(
        {"val/psnr": np.array([psnr - 1, psnr + 1], np.float32)},
        ["cat@0,0", "cat@0,64"],
        encode_png(np.full((2, 6, 3), step % 256, np.uint8)),
    )
    times = {"train/step_seconds": seconds, "train/parameters": 532768.0, "train/busy_seconds": 1.0}
    used = {"speed/images_per_second": 64.0, "memory/peak_gb": 0.5} if step else {}
    means = {"val/psnr": psnr, **times, **used} | (test.test_means if test else {})
    report = Report(step, means, [], validation, repeated, test)
    return {**payload(report), "time_total_s": 1.0}


def record(
    folder: Path,
    max_steps: int,
    reports: Mapping[int, float] | Sequence[dict[str, Any]],
    label: str = "attention",
    kind: str = TRIAL,
) -> list[str]:
    """Runs a driver with one trial. `reports`: results, or step -> seconds per step. Returns the lines of the log."""
    results = [measured(*report) for report in reports.items()] if isinstance(reports, Mapping) else reports
    settings = RecorderSettings(str(folder), ("val/psnr",), {}, max_steps, 1, 1, 1, seed=0, shown=("val/psnr",))
    file = log_to(folder / "sweep.log")
    try:
        recorder = Recorder(settings)
        recorder.setup()
        config = {ID: "t000", LABEL: label, SEED: 0, GIVEN: True, PARAMETERS: {}, KIND: kind}
        trial = Trial("trial", config=config, stub=True)
        recorder.on_trial_start(0, [trial], trial)
        for result in results:
            recorder.on_trial_result(0, [trial], trial, result)
        recorder.on_experiment_end([trial])
    finally:
        logger.removeHandler(file)
        file.close()
    return [line[10:].rstrip() for line in (folder / "sweep.log").read_text().splitlines()]


def test_step_time_is_the_median_of_the_reports(tmp_path: Path) -> None:
    record(tmp_path, 240, {60: 0.9, 120: 0.3, 180: 0.32})
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert (row["step_seconds"], row["trained_parameters"]) == (0.32, 532768)
    record(tmp_path, 240, {240: 0.1})  # a resumed driver: the median is midway between 0.3 and 0.32
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert row["step_seconds"] == pytest.approx(0.31)
    assert column_types(tmp_path / "leaderboard.parquet")["trained_parameters"] == "int64"


def test_older_tables_are_continued(tmp_path: Path) -> None:
    tables = RunTables(tmp_path)
    tables.upsert_trial({"id": "t000", "status": "interrupted", "steps": 60, "step_seconds": 0.5, "val/psnr": 20.0})
    tables.add_report({"id": "t000", "step": 60, "val/psnr": 20.0})  # without step times
    tables.flush(force=True)
    (tmp_path / "events.jsonl").unlink()
    old = pq.read_table(tmp_path / "leaderboard.parquet").drop_columns(["trained_parameters"])
    pq.write_table(old, tmp_path / "leaderboard.parquet")
    record(tmp_path, 180, {120: 0.2, 180: 0.4})
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert row["step_seconds"] == pytest.approx(0.3) and row["trained_parameters"] == 532768


def test_first_report_shows_the_number_of_trained_parameters(tmp_path: Path) -> None:
    log = record(tmp_path, 180, {60: 0.3, 120: 0.3})
    assert [line for line in log if line.startswith("t000 step")] == [
        "t000 step 60/180  psnr 22.00  attention, 0.533 M parameters train",
        "t000 step 120/180  psnr 22.00  attention",
    ]


def test_evaluation_only_trial_has_no_step_time_and_no_trained_parameters(tmp_path: Path) -> None:
    log = record(tmp_path, 0, {0: 0.0047})
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert row["step_seconds"] is None and row["trained_parameters"] is None
    assert "t000 step 0/0  psnr 22.00  attention" in log


def images_of(folder: Path) -> dict[str, tuple[int, float]]:
    return {row["image"]: (row["step"], row["val/psnr"]) for row in read_rows(folder / "per_image.parquet")}


def test_images_of_a_report_are_recorded_and_removed_from_the_result(tmp_path: Path) -> None:
    """Tune writes the last result of each trial into its state at every report; images would make it large."""
    result = measured(60, 0.3)
    record(tmp_path, 180, [result])
    assert images_of(tmp_path) == {"cat@0,0": (60, 21.0), "cat@0,64": (60, 23.0)}
    assert VALIDATION not in result


def test_test_images_are_recorded_beside_those_of_validation(tmp_path: Path) -> None:
    """Under the names of test metrics; an older table without splits is continued."""
    record(tmp_path, 180, [measured(60, 0.3)])
    old = pq.read_table(tmp_path / "per_image.parquet").drop_columns(["split"])
    pq.write_table(old, tmp_path / "per_image.parquet")
    (tmp_path / "events.jsonl").unlink()  # as in a run of version 0.1
    values = {"val/psnr": np.array([20.0, 22.0], np.float32)}
    test = Validation(values, ["dog@0,0", "dog@0,64"], encode_png(np.zeros((2, 6, 3), np.uint8)))
    result = measured(180, 0.3, psnr=24.0, test=test)
    record(tmp_path, 180, [result])
    assert TEST not in result
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert (row["val/psnr"], row["test/psnr"]) == (24.0, 21.0)
    found = {(row["split"], row["image"]): row for row in read_rows(tmp_path / "per_image.parquet")}
    assert {key: (row["step"], row["val/psnr"], row["test/psnr"]) for key, row in found.items()} == {
        ("validation", "cat@0,0"): (180, 23.0, None),
        ("validation", "cat@0,64"): (180, 25.0, None),
        ("test", "dog@0,0"): (180, None, 20.0),
        ("test", "dog@0,64"): (180, None, 22.0),
    }


def test_trial_that_keeps_its_best_step_is_tabled_with_it(tmp_path: Path) -> None:
    """The history has the curve; leaderboard and images have the values of the best step."""
    results = []
    for step, psnr, best in ((60, 22.0, (60, 22.0)), (120, 24.0, (120, 24.0)), (180, 23.0, (120, 24.0))):
        result = measured(step, 0.1, psnr=psnr)
        kept = measured(best[0], 0.1, psnr=best[1])
        results.append({**result, VALIDATION: kept[VALIDATION], BEST: [best[0], {"val/psnr": best[1]}]})
    record(tmp_path, 180, results)
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert (row["steps"], row["best_step"], row["val/psnr"]) == (180, 120, 24.0)
    assert [row["val/psnr"] for row in read_rows(tmp_path / "history.parquet")] == [22.0, 24.0, 23.0]
    assert images_of(tmp_path) == {"cat@0,0": (120, 23.0), "cat@0,64": (120, 25.0)}
    assert measured_step(row) == 120 and measured_step({"steps": 180}) == 180


def test_trial_of_the_confirmation_is_marked(tmp_path: Path) -> None:
    log = record(tmp_path, 60, {60: 0.3}, kind=CONFIRMATION)
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert row["kind"] == "confirmation" and "t000 starts attention, confirmation" in log
    assert json.loads((tmp_path / "trials" / "t000" / "params.json").read_text())["kind"] == "confirmation"


def test_first_report_before_training_has_no_step_time(tmp_path: Path) -> None:
    """A trial that starts from finished weights is measured at step 0."""
    start = {
        name: value
        for name, value in measured(0, 0.0).items()
        if name not in ("train/step_seconds", "train/parameters")
    }
    log = record(tmp_path, 120, [start, measured(60, 0.3), measured(120, 0.3)])
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert row["step_seconds"] == pytest.approx(0.3) and row["trained_parameters"] == 532768
    assert [r["speed/images_per_second"] for r in read_rows(tmp_path / "history.parquet")] == [None, 64.0, 64.0]
    assert scalars(tmp_path / "trials" / "t000", "memory/peak_gb") == [(60, 0.5), (120, 0.5)]
    assert [line for line in log if "parameters train" in line] == [
        "t000 step 60/120  psnr 22.00  attention, 0.533 M parameters train"
    ]


def test_repeated_report_does_not_change_the_tables(tmp_path: Path) -> None:
    record(tmp_path, 180, {60: 0.3})
    before = {name: (tmp_path / name).read_bytes() for name in ("history.parquet", "per_image.parquet")}
    log = record(tmp_path, 180, [measured(60, 9.0, repeated=True, psnr=1.0)])
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert "t000 continues at step 60" in log


def test_repeated_report_is_recorded_if_the_driver_never_received_it(tmp_path: Path) -> None:
    """The trial had written its checkpoint, and the driver ended before the report arrived."""
    record(tmp_path, 180, {60: 0.3})
    record(tmp_path, 180, [measured(120, 0.4, repeated=True, psnr=24.0)])
    assert [row["step"] for row in read_rows(tmp_path / "history.parquet")] == [60, 120]
    assert images_of(tmp_path) == {"cat@0,0": (120, 23.0), "cat@0,64": (120, 25.0)}
    (row,) = read_rows(tmp_path / "leaderboard.parquet")
    assert (row["steps"], row["val/psnr"]) == (120, 24.0)


def test_trial_without_a_checkpoint_starts_over(tmp_path: Path) -> None:
    record(tmp_path, 180, {60: 0.3})
    log = record(tmp_path, 180, [measured(60, 0.5)])
    assert {"t000 starts again: attention", "t000 starts over at step 0"} <= set(log)
    assert [row["train/step_seconds"] for row in read_rows(tmp_path / "history.parquet")] == [0.5]


def test_report_of_a_checkpoint_of_version_0_1_continues_the_trial(tmp_path: Path) -> None:
    """It has only the values of every image and the picture."""
    record(tmp_path, 180, {60: 0.3})
    result = measured(60, 0.3, repeated=True)
    for name in [name for name in result if name.startswith("train/")]:
        del result[name]
    log = record(tmp_path, 180, [result, measured(120, 0.4)])
    assert "t000 continues at step 60" in log
    assert [row["step"] for row in read_rows(tmp_path / "history.parquet")] == [60, 120]

    del (alone := measured(60, 0.3, repeated=True))["train/parameters"]
    (tmp_path / "other").mkdir()
    record(tmp_path / "other", 180, [alone])
    (row,) = read_rows(tmp_path / "other" / "leaderboard.parquet")
    assert (row["steps"], row["trained_parameters"]) == (60, None)


def test_seconds_of_an_earlier_driver_are_added(tmp_path: Path) -> None:
    record(tmp_path, 180, {60: 0.3})
    record(tmp_path, 180, {120: 0.3})
    assert [row["wall_seconds"] for row in read_rows(tmp_path / "history.parquet")] == [1.0, 2.0]


@pytest.mark.parametrize("failing", ["commit", "board"])
def test_unwritable_files_end_the_sweep_with_one_line(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RecorderSettings(str(tmp_path), ("val/psnr",), {}, 180, 1, 1, 1, seed=0, shown=("val/psnr",))
    recorder = Recorder(settings)
    recorder.open()
    config = {ID: "t000", LABEL: "", SEED: 0, GIVEN: True, PARAMETERS: {}}
    trial = Trial("trial", config=config, stub=True)
    recorder.on_trial_start(0, [trial], trial)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    where, name = (recorder.tables, "commit") if failing == "commit" else (recorder.board, "report")
    monkeypatch.setattr(where, name, full)
    with pytest.raises(KeyboardInterrupt):  # Tune turns the signal into the end of its loop
        recorder.on_trial_result(0, [trial], trial, measured(60, 0.3))
    assert recorder.stopped == f"{tmp_path}: cannot be written (No space left on device)"
    recorder.on_trial_result(0, [trial], trial, measured(120, 0.3))  # nothing more is recorded
    recorder.on_trial_complete(0, [trial], trial)
    recorder.on_experiment_end([trial])
    monkeypatch.undo()
    (row,) = RunTables(tmp_path).load().leaderboard
    assert row["status"] in ("running", "interrupted")


def test_a_checkpoint_that_cannot_be_written_ends_the_sweep(tmp_path: Path) -> None:
    settings = RecorderSettings(str(tmp_path), ("val/psnr",), {}, 180, 1, 1, 1, seed=0, shown=("val/psnr",))
    recorder = Recorder(settings)
    recorder.open()
    trial = Trial("trial", config={ID: "t000", LABEL: "", SEED: 0, GIVEN: True, PARAMETERS: {}}, stub=True)
    recorder.on_trial_start(0, [trial], trial)
    with pytest.raises(KeyboardInterrupt):
        recorder.on_trial_result(0, [trial], trial, {NOT_WRITTEN: "checkpoint_000060: cannot be written (full)"})
    assert recorder.stopped == "checkpoint_000060: cannot be written (full)"


@pytest.mark.parametrize("lost", ["images", "trials"])
def test_a_report_that_was_recorded_in_part_is_completed(tmp_path: Path, lost: str) -> None:
    """A computer that loses its power may keep some lines of a report, and lose others."""
    record(tmp_path, 180, {60: 0.3, 120: 0.3})
    expected = RunTables(tmp_path).load()
    lines = (tmp_path / "events.jsonl").read_text().splitlines(keepends=True)
    of_60 = next(number for number, line in enumerate(lines) if '"images"' in line) + 1
    kept = [line for line in lines[of_60:] if f'"table": "{lost}"' not in line]
    (tmp_path / "events.jsonl").write_text("".join([*lines[:of_60], *kept]))
    for table in tmp_path.glob("*.parquet"):
        table.unlink()
    record(tmp_path, 180, [measured(120, 0.3, repeated=True)])
    tables = RunTables(tmp_path).load()
    assert {row["step"] for row in tables.per_image} == {120}
    (row,) = tables.leaderboard
    assert (row["steps"], row["val/psnr"]) == (120, 22.0)
    assert tables.history == expected.history
    count = len(lines_of(tmp_path))
    record(tmp_path, 180, [measured(120, 0.3, repeated=True)])  # nothing is missing now
    assert not [line for line in lines_of(tmp_path)[count:] if '"table": "images"' in line]


def lines_of(folder: Path) -> list[str]:
    return (folder / "events.jsonl").read_text().splitlines()


@pytest.mark.parametrize(("step", "status"), [(60, "stopped"), (180, "finished")])
def test_the_last_report_and_the_end_of_a_trial_are_one_commit(tmp_path: Path, step: int, status: str) -> None:
    """The driver is killed before Tune says that the trial has ended."""
    settings = RecorderSettings(str(tmp_path), ("val/psnr",), {}, 180, 1, 1, 1, seed=0, shown=("val/psnr",))
    recorder = Recorder(settings)
    recorder.open()
    trial = Trial("trial", config={ID: "t000", LABEL: "", SEED: 0, GIVEN: True, PARAMETERS: {}}, stub=True)
    recorder.on_trial_start(0, [trial], trial)
    recorder.on_trial_result(0, [trial], trial, {**measured(step, 0.3), "done": True})  # the scheduler has decided
    (row,) = RunTables(tmp_path).load().leaderboard
    assert (row["status"], row["steps"]) == (status, step)
    recorder.on_experiment_end([trial])  # nor does a disk that became full
    (row,) = RunTables(tmp_path).load().leaderboard
    assert row["status"] == status


def test_a_control_without_its_images_is_not_known(tmp_path: Path) -> None:
    record(tmp_path, 180, {60: 0.3})
    tables = RunTables(tmp_path).load()
    means = {"val/psnr": 20.0, "test/psnr": 20.0}
    for name in ("bicubic", "input_latent"):
        tables.upsert_trial({"id": name, "kind": "control", "status": "control", **means})
    tables.add_images("bicubic", "validation", 0, ["cat@0,0"], {"val/psnr": [20.0]})
    tables.flush(force=True)
    recorder = Recorder(RecorderSettings(str(tmp_path), ("val/psnr",), {}, 180, 1, 1, 1, seed=0, shown=("val/psnr",)))
    recorder.open()
    assert recorder.controls(tested=False) == {"bicubic"}
    assert recorder.controls(tested=True) == set()


def test_failures_count_from_the_last_checkpoint_on(tmp_path: Path) -> None:
    """A trial may lose its machine before each of its checkpoints."""
    settings = RecorderSettings(str(tmp_path), ("val/psnr",), {}, 180, 1, 1, 1, seed=0, shown=("val/psnr",))
    recorder = Recorder(settings)
    recorder.open()
    config = {ID: "t000", LABEL: "", SEED: 0, GIVEN: True, PARAMETERS: {}}
    trial = Trial("trial", config=config, stub=True, max_failures=MAX_FAILURES)
    recorder.on_trial_start(0, [trial], trial)
    for step in (20, 40, 60):
        trial.run_metadata.num_failures += MAX_FAILURES  # as Tune counts when a trial's process dies
        assert trial.should_recover()
        recorder.on_trial_result(0, [trial], trial, measured(step, 0.3) | {CHECKPOINT: f"checkpoint_{step:06d}"})
    for step in (70, 80):  # written between two reports
        trial.run_metadata.num_failures += MAX_FAILURES
        assert trial.should_recover()
        (tmp_path / "trials" / "t000" / f"checkpoint_{step:06d}").mkdir()
        (tmp_path / "trials" / "t000" / f"checkpoint_{step:06d}" / CHECKSUMS).touch()
        recorder.on_trial_start(0, [trial], trial)
    trial.run_metadata.num_failures += 1
    assert trial.should_recover()
    recorder.on_trial_start(0, [trial], trial)
    trial.run_metadata.num_failures += MAX_FAILURES
    assert not trial.should_recover()


def test_folders_in_no_record_are_not_continued_from(tmp_path: Path) -> None:
    (tmp_path / "trials" / "t007" / "checkpoint_000010").mkdir(parents=True)
    (tmp_path / "trials" / "bicubic").mkdir()
    settings = RecorderSettings(str(tmp_path), ("val/psnr",), {}, 180, 1, 1, 1, seed=0, shown=("val/psnr",))
    Recorder(settings).open()
    assert [path.name for path in (tmp_path / "trials").iterdir() if path.is_dir()] == ["bicubic"]
    assert (tmp_path / "unknown_trials" / "t007" / "checkpoint_000010").is_dir()
