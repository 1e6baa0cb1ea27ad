"""A run is found where it is now; Ray's folder fits into the address of a socket; limits of a container are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.planning.run_folder import RunFolder
from sweeps.planning.run_settings import located
from sweeps.planning.settings import SweepSettings
from tests.helpers.paths import ROOT
from trainables.common import machine
from trainables.common.errors import InputError
from trainables.common.locks import is_held
from trainables.common.session_folder import session_folder, temporary_root


def place(run: Path, store: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (store / "pairs-1").mkdir(parents=True, exist_ok=True)
    return run


def test_what_a_killed_driver_was_writing_is_removed(tmp_path: Path) -> None:
    trial, staged = tmp_path / "trials" / "t000", tmp_path / "trials" / "t000" / ".checkpoint_000010.partial"
    for folder in (tmp_path / "report", staged):
        folder.mkdir(parents=True)
    left = [tmp_path / ".events.jsonl.tmp", tmp_path / "report" / ".index.html.tmp", trial / ".17.tmp"]
    others = [tmp_path / "events.jsonl", trial / "notes.tmp", staged / "state.pt"]
    for path in (*left, *others):
        path.write_text("{")
    RunFolder(tmp_path).close()
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_moved_run_uses_the_data_next_to_it_then_the_data_of_its_start(tmp_path: Path) -> None:
    old = place(tmp_path / "results" / "x" / "run", tmp_path / "results" / "store")
    settings = SweepSettings("x", results="results")
    stores = {"train pairs": "pairs-1", "train pairs #1": "pairs-2"}  # the second one is made while trials train
    record = {"stores": stores, "store": str(tmp_path / "results" / "store")}
    assert located(old, settings, record).store == record["store"]

    new = place(tmp_path / "new" / "x" / "run", tmp_path / "new" / "store")
    found = located(new, settings, record)
    assert (found.results, found.store) == (str(new.parents[1]), str(tmp_path / "new" / "store"))
    (tmp_path / "new" / "store" / "pairs-1").rmdir()
    assert located(new, settings, record).store == record["store"]
    (tmp_path / "results" / "store" / "pairs-1").rmdir()  # on another machine: made anew next to the run
    assert located(new, settings, record).store == str(tmp_path / "new" / "store")


def test_a_given_store_is_used_first(tmp_path: Path) -> None:
    run = place(tmp_path / "x" / "run", tmp_path / "store")
    settings = SweepSettings("x", store=str(tmp_path / "given"))
    record = {"stores": {"train pairs": "pairs-1"}, "store": str(tmp_path / "given")}
    assert located(run, settings, record).store == str(tmp_path / "store")  # the given one is empty
    place(run, tmp_path / "given")
    assert located(run, settings, record).store == str(tmp_path / "given")
    bucket = SweepSettings("x", store="s3://bucket/stores")
    assert located(run, bucket, record).store == "s3://bucket/stores"


def test_a_shorter_temporary_folder_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path.parents[2]  # /tmp/pytest-of-...
    monkeypatch.setenv("TMPDIR", str(short))
    assert temporary_root() == short
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    root = temporary_root()
    session = f"{root}/sweep-{os.getuid()}-abcdefgh/session_2026-11-25_20-38-45_123456_1234567/sockets/plasma_store"
    assert root != long and len(session) <= 107


@pytest.mark.parametrize("kind", ["file", "missing"])
def test_an_unusable_temporary_folder_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "there"
    if kind == "file":
        path.write_text("")
    monkeypatch.setenv("TMPDIR", str(path))
    with pytest.raises(InputError, match=rf"TMPDIR {path}: not a writable folder"):
        temporary_root()


def test_folders_of_killed_drivers_are_removed_and_those_of_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.common.session_folder.temporary_root", lambda: tmp_path)
    left = tmp_path / f"sweep-{os.getuid()}-left"
    left.mkdir()
    (left / "lock").write_text("")
    written_later, new = tmp_path / f"sweep-{os.getuid()}-later", tmp_path / f"sweep-{os.getuid()}-new"
    written_later.mkdir()
    new.mkdir()
    os.utime(written_later, (1e9, 1e9))
    pipe = tmp_path / f"sweep-{os.getuid()}-pipe"
    os.mkfifo(pipe)  # of somebody else
    with session_folder() as first:
        assert not left.exists()
        with session_folder() as second:
            assert first.exists() and second != first
            # What deletes old files in TMPDIR may take the lock's file; an old folder that is in use is still kept.
            (second.parent / "lock").unlink()
            os.utime(second.parent, (1e9, 1e9))
            assert is_held(second.parent) and not is_held(new)
            with session_folder():
                assert second.exists()
    assert set(tmp_path.iterdir()) == {new, pipe}


def test_limits_of_a_container_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_own_cgroups", lambda: iter([tmp_path]))
    free, limited_by = machine.available_memory()
    assert limited_by == "this machine"
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**28}\n")
    assert machine.usable_cpus() == 1
    assert machine.available_memory() == (
        2**29 + 2**28,
        f"the memory limit of its control group ({tmp_path}/memory.max)",
    )
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.usable_cpus() == len(os.sched_getaffinity(0))
    assert machine.available_memory()[0] == pytest.approx(free, rel=0.5)
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu.cfs_quota_us").write_text("50000\n")  # version 1 of the interface
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.usable_cpus() == 1


@pytest.mark.parametrize("in_script", [False, True])
def test_sigterm_does_what_ctrl_c_does(in_script: bool) -> None:
    """Also in the background of a script, as in a SLURM job: there the shell lets it ignore Ctrl-C."""
    code = (
        "import sys, time\n"
        "from trainables.common.command import command_flags, run_command\n"
        "def work(flags):\n"
        "    print('working', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.exit(run_command(command_flags('x', 'x'), [], work, 'nothing was left'))\n"
    )
    command = ["bash", "-c", '"$@" & trap "kill -TERM $!" TERM; wait; wait $!', "script"] if in_script else []
    process = subprocess.Popen(
        [*command, sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted: nothing was left\n")
    assert time.monotonic() - started < 10


def test_nobody_else_can_enter_the_folder_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lets everybody write into the folder that it is given."""
    monkeypatch.setattr("trainables.common.session_folder.temporary_root", lambda: tmp_path)
    with session_folder() as folder:
        assert folder.is_dir() and folder.parent.parent == tmp_path
        assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert not folder.parent.exists()
