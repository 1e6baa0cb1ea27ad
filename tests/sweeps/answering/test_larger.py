"""Larger crops of test photographs, restored with real checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sweeps.answering import larger
from sweeps.answering.larger import LARGER, larger_pictures, larger_values, restore_larger
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from sweeps.recording.progress import log_to, logger

STEPS = {"c000": 1, "c001": 1}


@pytest.fixture(scope="module")
def plan(first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    places = {name: str(tmp_path_factory.mktemp(name)) for name in ("results", "store")}
    asked = SweepSettings("fidelity_weight", checkpoint=str(first_stage), perceptual="none", **places)
    return make_plan(resolve(asked), only_printed=True)


@pytest.fixture(scope="module")
def run(plan: Plan, first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one checkpoint under two names."""
    folder = tmp_path_factory.mktemp("run")
    restore_larger(plan, folder, STEPS, lambda id: first_stage)
    return folder


def test_crops_are_larger_than_those_of_the_test_and_measured_as_shown(run: Path, plan: Plan) -> None:
    values = {(row["id"], row["image"]): row for row in larger_values(run)}
    for id in ("bicubic", "c000", "c001"):
        pictures = larger_pictures(run, id)
        assert pictures is not None and len(pictures.images) == 2
        assert pictures.rows.shape == (2, 256, 3 * 256, 3)
        for name, row in zip(pictures.images, pictures.rows, strict=True):
            _, output, target = np.split(row / 255, 3, axis=1)
            psnr = -10 * np.log10(((output - target) ** 2).mean())
            assert values[id, name]["test/psnr"] == pytest.approx(psnr, rel=1e-4)
            assert values[id, name]["split"] == LARGER
    assert len({name.split("@")[0] for _, name in values}) == 2  # of different photographs


def test_trials_restore_a_crop_from_the_same_noise(run: Path) -> None:
    first, second = (larger_pictures(run, id) for id in ("c000", "c001"))
    assert first is not None and second is not None and (first.rows == second.rows).all()


def test_what_fails_costs_a_line_and_keeps_earlier_crops(run: Path, plan: Plan, tmp_path: Path) -> None:
    before = larger_values(run)

    def interrupted(id: str) -> Path:
        raise KeyboardInterrupt

    file = log_to(tmp_path / "sweep.log")
    try:
        restore_larger(plan, run, {"c000": 2}, lambda id: tmp_path)
        restore_larger(plan, run, {"c000": 3}, interrupted)
    finally:
        logger.removeHandler(file)
        file.close()
    log = (tmp_path / "sweep.log").read_text(encoding="utf-8")
    assert "note       pictures: no larger crops (FINISHED " in log and "Traceback" not in log
    assert "note       pictures: no larger crops (interrupted)" in log
    assert larger_values(run) == before != []


def test_what_is_there_is_not_restored_again(run: Path, plan: Plan) -> None:
    restore_larger(plan, run, STEPS, lambda id: pytest.fail(f"{id} was restored again"))
    assert larger_pictures(run, "c000") is not None


def test_size_of_the_test_crops_does_not_limit_them(first_stage: Path, tmp_path: Path) -> None:
    changes = (("pairs.test_size", "64"), ("pairs.validation_size", "64"))
    asked = SweepSettings(
        "fidelity_weight",
        checkpoint=str(first_stage),
        perceptual="none",
        results=str(tmp_path),
        store=str(tmp_path),
        set=changes,
    )
    crops = larger._crops(make_plan(resolve(asked), only_printed=True))
    assert [crop.target.shape for crop in crops] == [(256, 256, 3)] * 2


def test_damaged_crops_are_left_out_of_a_report(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report" / "larger"
    folder.mkdir(parents=True)
    (folder / "c000.png").write_bytes((run / "report" / "larger" / "c000.png").read_bytes()[:999])
    (folder / "values.json").write_text('{"values": [{"id": "c000"}, 7', encoding="utf-8")
    assert larger_pictures(tmp_path, "c000") is None and larger_values(tmp_path) == []
