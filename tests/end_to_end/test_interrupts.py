"""A sweep after Ctrl-C, `kill -9` of the driver and `kill -9` of a trial, with the real command line and Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.recording.tables import read_rows
from tests.helpers.sweep import SPACE, gone, only_run, run_sweep, sets, steps, store, sweeps, trials
from tests.helpers.tensorboard import Page, scalars

__all__ = ["store", "sweeps"]
pytestmark = pytest.mark.timeout(900)  # many processes per test, also on busy machines
STEPS = [0, 10, 20, 30, 40]


@pytest.mark.slow
def test_sweep_survives_interrupts_and_killed_processes(tmp_path: Path, store: Path, sweeps: Any) -> None:
    """One run: a second driver is refused, then Ctrl-C, the driver killed, a trial's process killed."""
    results = tmp_path / "results"
    first = sweeps(
        *("--space", SPACE, "--results", str(results), "--store", str(store), "--perceptual", "none"),
        *("--trials", "3", "--confirm", "0", "--max-steps", "40", *sets(training__reports=4)),
    )
    first.wait_for("step 10/40", 2)
    run = only_run(results)

    second = run_sweep("--resume", str(run))
    assert second.returncode == 2
    assert f"{run}: in use by a running sweep (process {first.process.pid} on " in second.stderr
    assert second.stdout == "" and second.stderr.count("\n") == 1

    first.wait_for("step 20/40")
    processes = first.descendants()
    first.interrupt()
    assert first.wait() == 130
    assert gone(processes, 5) == []
    assert "Traceback" not in first.text
    assert f"--resume {run}" in first.text
    rows = trials(run)
    assert {name: row["status"] for name, row in rows.items()} == {"t000": "interrupted", "t001": "interrupted"}
    assert all(name in first.text for name in ("interrupted at step", "bicubic", "interrupted with 0 of 3"))
    reported = {name: steps(run, name) for name in rows}
    assert reported == {name: STEPS[: row["steps"] // 10 + 1] for name, row in rows.items()}
    assert not rows.keys() & Page(run / "trials").groups.keys()  # none has ended
    assert "Interrupted: 0 of 3 trials ended" in (run / "report" / "index.html").read_text(encoding="utf-8")

    third = sweeps("--resume", str(run), "--space", SPACE)
    third.wait_for("t000 continues at step (10|20|30)")
    third.wait_for("t001 continues at step (10|20|30)")
    third.wait_for("t00[01] finished at step 40")
    third.wait_for("t00[23] step 10/40")
    # Ray's two agents wait another minute for the killed head. They hold no resources.
    processes = [process for process in third.descendants() if "Agent" not in process.name()]
    third.kill()
    third.wait()
    assert gone(processes, 20) == []
    finished = {name: row for name, row in trials(run).items() if row["status"] == "finished"}
    assert finished

    fourth = sweeps("--resume", str(run))
    fourth.wait_for("t00[23] step 20/40")
    victims = [process for process in fourth.descendants() if process.name().startswith("ray::ImplicitFunc")]
    assert victims
    victims[0].kill()
    assert fourth.wait() == 0, fourth.text
    assert "Traceback" not in fourth.text
    assert "t002 continues at step" in fourth.text or "t003 continues at step" in fourth.text

    rows = trials(run)
    assert sorted(rows) == ["t000", "t001", "t002"]
    assert {(row["status"], row["steps"]) for row in rows.values()} == {("finished", 40)}
    assert all(steps(run, name) == STEPS for name in rows)
    assert {name: rows[name] for name in finished} == finished  # no finished trial was repeated
    assert [row["label"] for _, row in sorted(rows.items())] == ["1:1:1", "1:1:2", "1:0.1:10"]
    assert {row["step"] for row in read_rows(run / "per_image.parquet") if row["id"] in rows} == {40}
    page = Page(run / "trials")
    assert {page.status(name) for name in page.groups} == {"STATUS_SUCCESS"}
    for name in rows:
        assert [step for step, _ in scalars(run / "trials" / name, "val/psnr")] == STEPS
        assert [step for step, _ in scalars(run / "trials" / name, "loss/inversion")] == list(range(2, 41, 2))
    assert (run / "best" / "weights.safetensors").exists()


def test_ctrl_c_during_preparation(tmp_path: Path, sweeps: Any) -> None:
    results, own_store = tmp_path / "results", tmp_path / "store"
    sweep = sweeps(
        *("--space", SPACE, "--results", str(results), "--store", str(own_store), "--perceptual", "none"),
        *("--trials", "1", *sets(pairs__train_pairs=512, sinsr__draws=4)),
    )
    sweep.wait_for(r"prepare +pairs \+ latents \+ targets: .* \d+/\d+")
    processes = sweep.descendants()
    sweep.interrupt()
    assert sweep.wait() == 130
    assert gone(processes, 5) == []
    assert "Traceback" not in sweep.text
    assert f"--resume {only_run(results)}" in sweep.text
    # Finished shards are kept; the store is not marked as complete.
    assert list(own_store.glob("targets-*/shard-*.arrow"))
    assert list(own_store.glob("targets-*/manifest.json")) == []
