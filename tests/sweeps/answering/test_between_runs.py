"""`compare`: winners of runs on the same test images; everything else is refused with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sweeps.compare import main
from sweeps.recording.tables import RunTables

PHOTOGRAPHS = "abcdef"
LEVEL = np.random.default_rng(0).uniform(20, 30, 12)


def make_run(
    folder: Path, effect: float, seed: int = 0, confirmed: str = "finished", store: str = "pairs-test-1", **trial: Any
) -> Path:
    """A run whose winner is ahead of its baseline by `effect` dB, each confirmed with three seeds."""
    rng = np.random.default_rng(seed)
    tables = RunTables(folder)
    plan = [("t000", "trial", "base", 1.0, 0.0), ("t001", "trial", "", 2.0, effect)]
    plan += [(f"c{i:03d}", "confirmation", *plan[i % 2][2:]) for i in range(6 if confirmed else 0)]
    for number, (id, kind, label, weight, gain) in enumerate(plan):
        status = confirmed if kind == "confirmation" else "finished"
        row: dict[str, Any] = {"id": id, "kind": kind, "label": label, "status": status, "steps": 9, "seed": number}
        row["config/loss.weight"] = weight
        for split, name in (("validation", "val/psnr"), ("test", "test/psnr")):
            if split == "validation" or kind == "confirmation":
                values = LEVEL + gain + rng.normal(0, 0.05, 12)
                row[name] = float(values.mean())
                images = [f"{photograph}@{i}" for photograph in PHOTOGRAPHS for i in range(2)]
                owner = {"id": id, "split": split, "step": 9}
                tables.add_per_image(
                    [{**owner, "image": i, name: float(v)} for i, v in zip(images, values, strict=True)]
                )
        tables.upsert_trial(row)
    tables.flush(force=True)
    record = {"objective": "val/psnr", "stores": {"test pairs": store}, "trial": {"training.max_steps": 9, **trial}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(record))
    return folder


def test_winners_are_compared_on_the_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = {"one": 4, "two": 8, "three": 4}
    runs = [
        make_run(tmp_path / "space" / name, effect, seed, **{"training.batch_size": batches[name]})
        for seed, (name, effect) in enumerate({"one": 0.5, "two": 1.5, "three": 0.5}.items())
    ]
    assert main([str(run) for run in runs]) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[0].split()[:3] == ["run", "winner", "steps"] and "t001 (weight 2)" in output
    assert [line.split()[0] for line in lines[1:4]] == ["space/one", "space/two", "space/three"]
    text = " ".join(output.split())
    assert "space/two: better, +1.0" in text and "space/three: not distinguishable" in text
    assert "3 seeds against 3; 12 images of 6 test photographs" in text
    assert "The runs' settings differ in training.batch_size 4 / 8 / 4." in text


def test_runs_of_one_second_are_told_apart_by_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / results / "space" / "20261121-093000", 0.5) for results in ("here", "there")]
    assert main([str(run) for run in runs]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{runs[1]}: not distinguishable" in text


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = make_run(tmp_path / "space" / "good", 0.5)
    others = {
        "pixels": make_run(tmp_path / "space" / "pixels", 0.5, store="pairs-test-2", **{"pairs.scale": 2}),
        "alone": make_run(tmp_path / "space" / "alone", 0.5, confirmed=""),
        "going": make_run(tmp_path / "space" / "going", 0.5, confirmed="running"),
        "older": make_run(tmp_path / "space" / "older", 0.5),
        "other": make_run(tmp_path / "space" / "other", 0.5),
        "nowhere": tmp_path / "nowhere",
    }
    (others["older"] / "settings.yaml").write_text("command: {}")
    record = yaml.safe_load((others["other"] / "settings.yaml").read_text())
    (others["other"] / "settings.yaml").write_text(yaml.safe_dump({**record, "objective": "val/ssim"}))
    for name, reason in {
        "pixels": "space/pixels was not measured on the test images of space/good: other pairs.scale",
        "alone": "has no confirmation, so its winner was not measured on test photographs",
        "going": "its confirmation has not ended (c000, c001, c002, c003, c004, c005); resume it first",
        "older": "it has no objective and no stores; the run does not say which version of restoration-sweeps made it",
        "other": "val/ssim was not measured on its test photographs; there are val/psnr",
        "nowhere": "not the folder of a run (No such file or directory); expected one with a settings.yaml",
    }.items():
        assert main([str(good), str(others[name])]) == 2
        assert reason in " ".join(capsys.readouterr().err.split())
    assert main([str(good), str(good)]) == 2
    assert "expected two or more different runs" in capsys.readouterr().err
    assert main([str(good), str(others["other"]), "--metric", "psnr"]) == 2
    assert "val/ssim was not measured" in " ".join(capsys.readouterr().err.split())
    assert main([str(good), str(others["pixels"]), "--metric", "beauty"]) == 2
    assert "--metric beauty: expected one of psnr, psnr_y" in capsys.readouterr().err
