"""All faults of a run's folder, without a trial that trains, and those of running sweeps and of the machine that
end_to_end/ does not have.

`python -m tests.faults` tries all faults in whole sweeps.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import reading
from tests.faults.__main__ import table
from tests.faults.inject import KILLED, Bench, Outcome, all_faults
from tests.faults.runs import Results, Sweep
from trainables.training.checkpoint_folders import newest_whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a sweep with many processes, also on busy machines


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """In a folder with a short path: a `TMPDIR` in it must be short enough for the address of a socket."""
    with tempfile.TemporaryDirectory(prefix="f-") as folder:
        yield Bench(Path(folder), seed=0)


@pytest.mark.parametrize("fault", reading.ALL)
def test_run_is_read_after(bench: Bench, fault: str) -> None:
    assert bench.read(fault, random.Random(0)).problems == []


WHOLE = (
    *("running: raylet killed", "running: driver paused", "a finished run resumed", "HOME cannot be written"),
    *("TMPDIR cannot be written", "TMPDIR too small", "TMPDIR full while trials run", "ulimit -v"),
    *("results: disk full while trials run", "results read-only"),
)


@pytest.mark.parametrize("fault", WHOLE)
def test_whole_sweep_survives(bench: Bench, fault: str) -> None:
    if fault not in all_faults():
        pytest.skip("it mounts a file system, which needs the right to do so")
    assert bench.run(fault, random.Random(0)).problems == []


@pytest.mark.parametrize("damaged", [False, True])
def test_finished_trial_without_checkpoints_is_repeated_if_asked(bench: Bench, damaged: bool) -> None:
    run = bench.copy_of(bench.killed(*KILLED[-1]))
    before = Results.of(run)
    assert before.ends["t000"] == ("finished", 4)
    if damaged:
        (weights,) = (run / "trials" / "t000").glob("checkpoint_*/weights.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100] + bytes(100))
    else:
        shutil.rmtree(run / "trials" / "t000")
    shown = Sweep("--resume", str(run), "--repeat-lost", "--dry-run")
    assert (shown.wait(), shown.close()) == (0, []), shown.text
    assert "note       --repeat-lost trains again: t000" in shown.text
    sweep = Sweep("--resume", str(run), "--repeat-lost")
    status = sweep.wait()
    assert (status, sweep.close()) == (0, []), sweep.text
    assert "finished trials whose checkpoints are gone or damaged: t000; train again" in sweep.text
    assert "t000 starts over at step 0" in sweep.text
    after = Results.of(run)
    assert after.ends == dict.fromkeys(("t000", "t001", "t002"), ("finished", 4))
    assert {key: after.reports[key] for key in before.reports} == before.reports
    assert newest_whole(run / "trials" / "t000")[0]


def test_table_counts_what_was_tried() -> None:
    one, other = all_faults()[:2]
    lines = table([Outcome(one, []), Outcome(one, ["lost"]), Outcome(other, [])], seed=3).splitlines()
    assert lines[2:] == [f"| {one} | 2 | 1 |", f"| {other} | 1 | 1 |", "| all, seed 3 | 3 | 2 |"]
