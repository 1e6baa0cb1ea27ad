"""A run's folder from a stranger: reading it runs nothing, stays in the folder, and does not fill the memory."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sweeps
from search_spaces import Float
from sweeps.planning.run_bucket import run_to_read
from sweeps.planning.run_folder import reopen_run
from sweeps.planning.run_settings import read_record
from sweeps.recording.events import EventLog
from sweeps.recording.recorder import Recorder, RecorderSettings
from sweeps.recording.tables import RunTables, read_rows
from tests.helpers.paths import ROOT
from trainables.common.errors import InputError
from trainables.common.paths import refuse_secrets
from trainables.networks.checkpoint_files import read_checkpoint
from trainables.pretrained.finished_trial import finished_settings
from trainables.settings import TrialSettings
from trainables.training.checkpoint import read_state
from trainables.training.checkpoint_folders import newest_whole
from trainables.training.pictures import Pictures


class Planted:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_checkpoint_with_a_pickle_is_refused(tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "t000" / "checkpoint_000010"
    folder.mkdir(parents=True)
    for planted in ({"method": "pixel_diffusion", "step": Planted(mark)}, Planted(mark)):
        torch.save(planted, folder / "state.pt")
        with pytest.raises(InputError, match="not a checkpoint of a trial"):
            read_state(folder, TrialSettings(method="pixel_diffusion"))
    (folder / "state.pt").write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(InputError, match="not a checkpoint of a trial"):
        read_state(folder, TrialSettings(method="pixel_diffusion"))
    assert newest_whole(folder.parent)[0] is None
    assert not mark.exists()


def test_checksums_cannot_lead_out_of_a_checkpoint(tmp_path: Path) -> None:
    """Not even to read a file from elsewhere: a name in them is no path."""
    folder = tmp_path / "t000" / "checkpoint_000010"
    folder.mkdir(parents=True)
    for name in ("../../secret", "/etc/hostname", "/dev/zero", "link"):
        (folder / "state.pt").write_bytes(b"")
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to("/dev/zero")
        (folder / "checksums.json").write_text(json.dumps({"step": 10, "sha256": {"state.pt": "0", name: "0"}}))
        found, damaged = newest_whole(folder.parent)
        assert found is None and len(damaged) == 1


def record(folder: Path, *events: dict[str, Any]) -> None:
    EventLog(folder).append(events)


def test_record_cannot_lead_out_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "trials").mkdir(parents=True)
    for id in ("../../outside", "/tmp/outside", "..", "t000/../../outside", ""):
        record(run, {"table": "trials", "row": {"id": id, "kind": "trial", "status": "running"}})
    record(run, {"table": "trials", "row": {"id": "t000", "status": "finished", "checkpoint": "../../outside"}})
    settings = RecorderSettings(str(run), ("val/psnr",), {"x": Float(0, 1)}, 180, 1, 1, 1, seed=0, shown=("val/psnr",))
    recorder = Recorder(settings)
    recorder.open()
    assert [row["id"] for row in recorder.tables.leaderboard] == ["t000"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


FOREIGN = (
    ".lock",
    "events.jsonl",
    "sweep.log",
    "settings.yaml",
    ".bucket",
    "trials",
    "trials/t000",
    "trials/t000/params.json",
    "trials/t000/checkpoint_000010",
    "trials/t000/checkpoint_000010/state.pt",
    "report",
    "report/answer.md",
    "best",
    ".best",
    ".ray",
    "unknown_trials",
    "wandb",
)


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe"])
@pytest.mark.parametrize("name", FOREIGN)
def test_run_with_links_or_pipes_is_refused_before_anything_is_opened(tmp_path: Path, name: str, kind: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (run / name).parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(outside if kind == "link" else tmp_path / "nowhere")
    for open_it in (reopen_run, lambda path: run_to_read("RUN", str(path)), sweeps.open_run):
        with pytest.raises(InputError, match=f"{name} is (a link to|no regular file)"):
            open_it(run)
    assert [path.name for path in outside.iterdir()] == ["kept"]
    assert not (tmp_path / "nowhere").exists()
    assert not (run / ".lock").is_file()


def test_link_to_a_run_and_links_of_others_are_accepted(tmp_path: Path) -> None:
    """Weights & Biases links to its newest log, and a killed driver leaves Optuna's lock, which is a link."""
    run = tmp_path / "run"
    (run / "wandb").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (run / "optuna.journal.lock").symlink_to("optuna.journal")
    (tmp_path / "link").symlink_to(run)
    assert run_to_read("RUN", str(tmp_path / "link")) == tmp_path / "link"


def test_record_is_not_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        record(tmp_path / "run", {"table": "trials", "row": {"id": "t000"}})
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["settings.json", "weights.safetensors"])
def test_finished_trial_with_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is no regular file"):
        finished_settings(tmp_path, "", "FINISHED")


@pytest.mark.parametrize(
    "checkpoint", ["../../outside/checkpoint_1", "trials/t001/checkpoint_1", "/etc", "trials/t000/.."]
)
def test_checkpoint_in_the_leaderboard_cannot_lead_out_of_its_trial(tmp_path: Path, checkpoint: str) -> None:
    (tmp_path / "settings.yaml").write_text("{}")
    table = pa.table({"id": ["t000", "t002"], "checkpoint": [checkpoint, "trials/t002/checkpoint_000010"]})
    pq.write_table(table, tmp_path / "leaderboard.parquet")
    run = sweeps.open_run(tmp_path)
    with pytest.raises(InputError, match="expected a folder of that trial"):
        run.trial("t000")
    assert run.trial("t002").folder == tmp_path / "trials" / "t002" / "checkpoint_000010"


def compressed(values: bytes) -> dict[str, str]:
    return {"zlib": base64.b64encode(zlib.compress(values)).decode()}


ONE = {"id": {"same": "t000", "count": 1}, "step": {"same": 1, "count": 1}}
BOMBS: dict[str, dict[str, Any]] = {
    "compressed names": {**ONE, "image": compressed(b"[" + b'"a",' * (2 * 10**7) + b'"a"]')},
    "equal names": {**ONE, "image": {"same": "a", "count": 10**9}},
    "many columns": {
        **ONE,
        "image": compressed(json.dumps([f"{k}" for k in range(1000)]).encode()),
        **{f"val/{k}": compressed(b"[" + b"1.0," * 999 + b"null]") for k in range(1000)},
    },
    "nested": {**ONE, "image": compressed(b"[" * 10**6)},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_record_does_not_fill_the_memory(tmp_path: Path, bomb: str) -> None:
    record(tmp_path, {"table": "images", "row": BOMBS[bomb]}, {"table": "trials", "row": {"id": "t001"}})
    assert (tmp_path / "events.jsonl").stat().st_size < 10**6
    limited = (
        "import resource, sys\n"
        "from sweeps.recording.tables import RunTables\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"tables = RunTables({str(tmp_path)!r}).load()\n"
        "assert [row['id'] for row in tables.leaderboard] == ['t001'], tables.leaderboard\n"
        "assert tables.per_image == [] and len(tables.notes) == 1, tables.notes\n"
        "taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used\n"
        "assert taken < 700_000, taken\n"
    )
    subprocess.run([sys.executable, "-c", limited], check=True, cwd=ROOT, timeout=120)


def test_rows_with_many_columns_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Each row names columns of its own; together they would be a table of tens of millions of cells."""
    rows = [{"id": f"t{k:04d}", **{f"config/{k}.{j}": 1 for j in range(5)}} for k in range(2000)]
    record(tmp_path, *({"table": "trials", "row": row} for row in rows))
    with pytest.raises(InputError, match="columns"):
        RunTables(tmp_path).load()


def test_table_that_expands_is_refused(tmp_path: Path) -> None:
    long = pa.DictionaryArray.from_arrays(np.zeros(10**6, np.int32), pa.array(["x" * 10_000]))
    pq.write_table(pa.table({"id": long, "status": long}), tmp_path / "leaderboard.parquet")
    assert (tmp_path / "leaderboard.parquet").stat().st_size < 10**5
    with pytest.raises(InputError, match=r"leaderboard\.parquet: .*takes more than"):
        read_rows(tmp_path / "leaderboard.parquet")
    nested = pa.array([[{"a": 1}]])
    pq.write_table(pa.table({"id": nested}), tmp_path / "history.parquet")
    with pytest.raises(InputError, match="column id is nested"):
        read_rows(tmp_path / "history.parquet")


def packed_again(path: Path) -> None:
    """The same archive, compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def overlapping(path: Path) -> None:
    """The same archive, whose directory names its largest member a hundred times."""
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        for k in range(100):
            twin = copy.copy(largest)
            twin.filename = f"{largest.filename}{k}"
            archive.filelist.append(twin)
        archive.writestr("more", b"")  # writes the directory


@pytest.mark.parametrize("bomb", ["compressed", "overlapping", "repeated", "sparse"])
def test_checkpoint_that_expands_is_refused(tmp_path: Path, bomb: str) -> None:
    folder = tmp_path / "t000" / "checkpoint_000010"
    folder.mkdir(parents=True)
    state, file = {"method": "pixel_diffusion", "step": 10, "networks": torch.zeros(10**6)}, folder / "state.pt"
    torch.save(state, file)
    assert read_state(folder, TrialSettings(method="pixel_diffusion"))["step"] == 10
    assert newest_whole(folder.parent)[0] == folder
    if bomb == "compressed":
        packed_again(file)
        assert file.stat().st_size < 20_000
    elif bomb == "overlapping":
        overlapping(file)
    else:
        one = torch.zeros(1)
        huge = one.expand(10**10) if bomb == "repeated" else torch.sparse_coo_tensor(size=(10**10,))
        torch.save({**state, "networks": [{"a": huge}]}, file)
        assert file.stat().st_size < 20_000
    with pytest.raises(InputError, match="not a checkpoint of a trial"):
        read_state(folder, TrialSettings(method="pixel_diffusion"))
    with pytest.raises(ValueError, match=r"compressed|overlap|take more than 64|sparse"):
        read_checkpoint(file)
    if bomb in ("compressed", "overlapping"):
        assert newest_whole(folder.parent)[0] is None


def test_pictures_that_expand_are_refused(tmp_path: Path) -> None:
    names = PngInfo()
    names.add_itxt("images", '["a"]')
    for mode, size in {"RGB": (20_000, 20_000), "RGBA": (3, 1)}.items():
        Image.new(mode, (3, 1)).save(tmp_path / "validation.png", pnginfo=names)
        content = bytearray((tmp_path / "validation.png").read_bytes())
        header = b"IHDR" + struct.pack(">II", *size) + content[24:29]
        content[12:33] = header + struct.pack(">I", zlib.crc32(header))
        (tmp_path / "validation.png").write_bytes(content)
        with pytest.raises(ValueError, match="no pictures of a trial"):
            Pictures.read(tmp_path / "validation.png")


SETTINGS_BOMBS = {
    "aliases": b"a: &a [x,x]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (k, k, k - 1, k - 1) for k in range(98, 123)),
    "a long number": b"a: " + b":".join([b"59"] * 100_000),
    "a long file": b"a: " + b"\n  ".join([b"x" * 100] * 20_000),
    "deep": b"[" * 5_000,
}


@pytest.mark.parametrize("bomb", SETTINGS_BOMBS)
def test_settings_that_expand_are_refused(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "settings.yaml").write_bytes(SETTINGS_BOMBS[bomb])
    began = time.monotonic()
    with pytest.raises(InputError, match=r"settings\.yaml: ") as error:
        read_record(tmp_path)
    assert len(str(error.value)) < 500 + len(str(tmp_path))
    assert time.monotonic() - began < 20  # the number alone would take minutes


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:secret@bucket/a",
        "s3://key%3Asecret@bucket/a",
        "s3://key%253Asecret@bucket/a",
        "s3://key:sec%2Fret@bucket/a",
        "s3://bucket/a?endpoint_override=https://user:secret@host",
        "s3://bucket/a?region=x&endpoint_override=https%3A%2F%2Fuser%3Asecret%40host",
        "s3://bucket/a?endpoint_override=user:secret@host:9000",
        "s3://bucket/a?endpoint_override=https://secret@host",
        "s3://bucket/a?endpoint_override=secret%40host:9000",
        "s3://bucket/a?secret_key=abc",
        "gs://bucket/a?access%5Ftoken=abc",
        "https://host/a?X-Amz-Signature=abc",
    ],
)
def test_secrets_in_a_uri_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="--data: contains credentials") as error:
        refuse_secrets("--data", uri)
    assert "secret@" not in str(error.value) and "abc" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@b:c",
        "s3://bucket/a?endpoint_override=https://host:9000&region=eu",
        "gs://anonymous@bucket/a",
        "a:b@c",
    ],
)
def test_uris_without_a_secret_pass(uri: str) -> None:
    refuse_secrets("--data", uri)
