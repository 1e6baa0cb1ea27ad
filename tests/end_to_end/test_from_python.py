"""The notebook of docs/ runs from its first cell to its last, with real Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import search_spaces
import sweeps
from sweeps.planning.question import resolve
from sweeps.planning.run_folder import reopen_run
from tests.helpers.paths import ROOT
from trainables.common.errors import InputError

NOTEBOOK = ROOT / "docs" / "from_python.ipynb"


def cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_spaces, "OWN", {})
    names: dict[str, Any] = {}
    for source in cells():
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    run = names["run"]
    assert "paper" in capsys.readouterr().out
    assert isinstance(run.leaderboard, pd.DataFrame) and set(run.leaderboard["status"]) == {"finished", "control"}
    assert (run.leaderboard["kind"] == "confirmation").sum() == 4
    assert run.answer.finalists and not run.answer.unconfirmed
    assert isinstance(names["restored"], Image.Image) and names["restored"].size == (4 * 96, 4 * 64)
    assert "Test photographs" in run.report.read_text(encoding="utf-8")
    assert run.trial("t000").folder != run.best.folder

    # The run can be resumed by a process that has never seen the space.
    search_spaces.OWN.clear()
    again = reopen_run(run.folder)
    again.folder.close()
    assert resolve(again.settings, again.started).space == names["space"]


def test_what_is_no_run_or_no_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not the folder of a run; expected one with a settings.yaml"):
        sweeps.open_run(tmp_path)
    with pytest.raises(InputError, match=r"trails: no such setting of a sweep; there are address, "):
        sweeps.run("lora", trails=3)
    for wrong, message in (
        ({"trials": "6"}, "trials='6': expected a whole number"),
        ({"trials": 6.0}, r"trials=6.0: expected a whole number"),
        ({"results": 3}, "results=3: expected text"),
        ({"time_budget": "8"}, "time_budget=8: expected a time such as 8h"),
        ({"constraint": "psnr"}, "--constraint psnr: expected METRIC>=NUMBER"),
    ):
        with pytest.raises(InputError, match=message):
            sweeps.run("lora", **wrong)
