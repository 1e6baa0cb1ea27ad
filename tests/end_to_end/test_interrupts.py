"""A sweep after `kill -9` of the driver and of a trial, and after Ctrl-C, with the real command line and Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.command_line import main
from sweeps.recording.tables import read_rows
from tests.helpers.sweep import RATES, gone, light, only_run, steps, sweeps, trials
from tests.helpers.tensorboard import Page, scalars

__all__ = ["sweeps"]
pytestmark = pytest.mark.timeout(900)  # many processes per test, also on busy machines
STEPS = [41, 82, 123, 164]
LOGGED = sorted({*range(2, 165, 2), *STEPS})  # every second step, and with each report


@pytest.mark.slow
def test_sweep_survives_killed_processes_and_ctrl_c(
    tmp_path: Path, sweeps: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run: a second driver is refused; then the driver is killed and a checkpoint damaged, a trial's process is
    killed, and Ctrl-C comes in the confirmation. Variants of the training pairs are prepared beside the trials.
    """
    results = tmp_path / "results"
    first = sweeps(
        *light(results, tmp_path / "store", training__reports=4, pairs__variants=2),
        *("--trials", "3", "--confirm", "1", "--seeds", "2", "--max-steps", "164"),
    )
    first.wait_for("step 41/164", 2)
    run = only_run(results)

    capsys.readouterr()
    assert main(["--resume", str(run)]) == 2
    said = capsys.readouterr()
    assert f"{run}: in use by a running sweep (process {first.process.pid} on " in said.err
    assert said.out == "" and said.err.count("\n") == 1

    first.wait_for("step 82/164")  # epoch 1 began at step 8
    assert first.seen("prepare +variant 1 of the training pairs, beside the trials") == 1
    # Ray's two agents wait another minute for the killed head. They hold no resources.
    processes = [process for process in first.descendants() if "Agent" not in process.name()]
    first.kill()
    first.wait()
    assert gone(processes, 20) == []
    assert not trials(run).keys() & Page(run / "trials").groups.keys()  # none has ended
    newest = max((run / "trials").glob("t00[01]/checkpoint_*"), key=lambda folder: int(folder.name[-6:]))
    earlier, damaged = int(newest.name[-6:]) - 41, newest.parent.name
    with (newest / "state.pt").open("r+b") as file:
        file.seek(2000)
        file.write(b"damaged")

    second = sweeps("--resume", str(run), "--space", RATES)
    for id in ("t000", "t001"):
        second.wait_for(f"{id} continues at step {earlier if id == damaged else '(41|82|123)'}(?!\\d)")
    assert second.seen(f"{damaged} {newest.name} is damaged") == 1
    victims = [process for process in second.descendants() if process.name().startswith("ray::ImplicitFunc")]
    assert victims
    victims[0].kill()
    second.wait_for("t00[012] (continues at step|starts over at step|starts again)", 3)
    second.wait_for(r"c00[0123] step 41/164")
    processes = second.descendants()
    second.interrupt()
    assert second.wait() == 130
    assert gone(processes, 5) == []
    assert "Traceback" not in second.text
    searched, begun = trials(run), trials(run, "confirmation")
    assert {(row["status"], row["steps"]) for row in searched.values()} == {("finished", 164)}
    assert "interrupted" in {row["status"] for row in begun.values()} and set(begun) <= {"c000", "c001", "c002", "c003"}
    for name, row in begun.items():
        reported = steps(run, name)  # none of one that was about to start
        assert reported == STEPS[: len(reported)] and max(reported, default=0) == row["steps"]
    # One line says why nothing is claimed; nothing is lost.
    assert "leads the search" in second.text
    assert second.text.count("Nothing is called better: the confirmation has not finished.") == 1
    count = len([row for row in (*searched.values(), *begun.values()) if row["status"] == "finished"])
    assert f"interrupted with {count} of 7 trials ended" in second.text and f"--resume {run}" in second.text
    assert f"Interrupted: {count} of 7 trials ended" in (run / "report" / "index.html").read_text(encoding="utf-8")

    third = sweeps("--resume", str(run))
    assert third.wait() == 0, third.text
    assert "Traceback" not in third.text and "c00" in third.text.partition("continues at step")[0].splitlines()[-1]
    assert trials(run) == searched  # no trial of the search was repeated
    assert [row["label"] for _, row in sorted(searched.items())] == ["low", "middle", "high"]
    confirmed = trials(run, "confirmation")
    assert sorted(confirmed) == ["c000", "c001", "c002", "c003"]
    assert {(row["status"], row["steps"]) for row in confirmed.values()} == {("finished", 164)}
    images = read_rows(run / "per_image.parquet")
    tested = {row["id"] for row in images if row["split"] == "test"}
    assert tested == {*confirmed, "bicubic"}
    assert {row["step"] for row in images if row["id"] in {*searched, *confirmed}} == {164}
    page = Page(run / "trials")
    assert {page.status(name) for name in page.groups} == {"STATUS_SUCCESS"}
    assert {page.hparams(name)["kind"] for name in confirmed} == {"confirmation"}
    for name in (*searched, *confirmed):
        assert steps(run, name) == STEPS
        assert [step for step, _ in scalars(run / "trials" / name, "val/psnr")] == STEPS
        assert [step for step, _ in scalars(run / "trials" / name, "loss/l1")] == LOGGED
    answer = (run / "report" / "answer.md").read_text()
    assert "4 test photographs and 2 seeds such a sweep detects a true difference of" in answer
    assert "leads the search" not in answer
    assert (run / "best" / "weights.safetensors").exists()


def test_ctrl_c_during_preparation(tmp_path: Path, sweeps: Any) -> None:
    results, own_store = tmp_path / "results", tmp_path / "store"
    sweep = sweeps(*light(results, own_store, pairs__train_pairs=20_000), "--trials", "1")
    sweep.wait_for(r"prepare +pairs: .* [1-9]\d*/\d+")
    processes = sweep.descendants()
    sweep.interrupt()
    assert sweep.wait() == 130
    assert gone(processes, 5) == []
    assert "Traceback" not in sweep.text
    assert f"--resume {only_run(results)}" in sweep.text
    # Finished shards are kept; the store is not marked as complete.
    assert list(own_store.glob("pairs-*/shard-*.arrow"))
    assert not list(own_store.glob("pairs-*/manifest.json"))
