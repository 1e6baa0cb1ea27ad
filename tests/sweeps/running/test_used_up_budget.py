"""A run whose time budget is used up answers from the trials that it has; it starts none, and says how to go on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from sweeps.command_line import main
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.question import resolve
from sweeps.planning.run_folder import create_run
from sweeps.planning.settings import SweepSettings
from sweeps.recording.tables import RunTables
from tests.helpers.sweep import SPACE, TINY

BUDGET = 600.0


def planned(folder: Path, **flags: Any) -> Plan:
    pairs = tuple((name, str(value)) for name, value in TINY.items())
    places = {"results": str(folder / "results"), "store": str(folder / "store")}
    return make_plan(
        resolve(SweepSettings(SPACE, set=pairs, trials=3, max_steps=20, perceptual="none", **places, **flags))
    )


ONE_OF_TWO = {"finished": 20, "interrupted": 10}


def run_so_far(folder: Path, seconds: float, trials: Mapping[str, int] = ONE_OF_TWO, **more: Any) -> Path:
    """A run that has used so many seconds of its budget.

    Args:
        trials: status -> steps, of its first points. more: columns of the last one.
    """
    plan = planned(folder, time_budget=BUDGET)
    run = create_run(plan.question, plan.metrics, plan.objective, plan.stores, plan.store)
    tables = RunTables(run.path)
    tables.drivers.begin(time.monotonic() - seconds)
    for number, (status, steps) in enumerate(trials.items()):
        point = plan.question.space.points[number]
        row = {"id": f"t{number:03d}", "label": point.label, "status": status, "steps": steps, "seed": 0}
        values = {"val/psnr": 20.0 + number, "wall_seconds": 2.0}
        tables.upsert_trial({**row, **values, **{f"config/{name}": value for name, value in point.values.items()}})
        tables.add_report({"id": row["id"], "step": steps, **values})
    tables.upsert_trial({"id": row["id"], **more})
    tables.flush(force=True)
    run.close()
    return run.path


def test_resume_without_time_answers_at_once_and_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_so_far(tmp_path, BUDGET)
    before = RunTables(run).load().leaderboard
    for _ in range(2):
        main(["--resume", str(run)])
        said = capsys.readouterr().err
        assert (
            "the time budget is over with 1 of 12 trials ended" in said
            and "interrupted" not in said.partition("trial ")[0]
        )
        assert f"--resume {run} --time-budget 1h" in said
        assert not ray.is_initialized() and RunTables(run).load().leaderboard == before
    answer = (run / "report" / "answer.md").read_text()
    assert "Nothing is called better: the search has not finished." in answer
    assert "1 trial interrupted." in answer


def test_trial_that_the_time_stopped_is_in_the_answer_without_time_for_it(tmp_path: Path) -> None:
    run = run_so_far(tmp_path, BUDGET, {"finished": 20, "stopped": 10, "failed": 10}, diverged=True)
    tables = RunTables(run).load()
    tables.upsert_trial({"id": "t001", "out_of_time": True})
    tables.flush(force=True)
    main(["--resume", str(run)])
    answer = (run / "report" / "answer.md").read_text()
    assert "Nothing is called better: no other configuration finished" in answer
    assert "1 trial stopped because the time budget was over" in answer and "ASHA" not in answer
    assert RunTables(run).load().trial("t001")["status"] == "stopped"


def test_limit_with_resume_that_is_shorter_than_a_trial_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_so_far(tmp_path, 30.0)
    before = (run / "settings.yaml").read_bytes()
    assert main(["--resume", str(run), "--time-budget", "0.01s"]) == 2
    assert "expected time for more than one trial" in capsys.readouterr().err
    assert (run / "settings.yaml").read_bytes() == before


def test_time_that_is_left_is_that_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And not the two seconds of each trial, divided by the CPUs."""
    run = run_so_far(tmp_path, BUDGET / 2)
    assert main(["--resume", str(run), "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("budget")]
    assert line.split()[1] in ("4", "5"), line  # minutes: half of the budget, less what this test took
