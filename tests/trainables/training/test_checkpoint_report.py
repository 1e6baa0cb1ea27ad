"""The report of a checkpoint, which a continued trial sends again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trainables.training.checkpoint import _kept, report_of
from trainables.training.measurements import Validation, encode_png


def measured(value: float) -> Validation:
    grid = encode_png(np.full((2, 6, 3), int(value), np.uint8))
    return Validation({"val/psnr": np.array([value, value + 1], np.float32)}, ["cat@0,0", "cat@0,64"], grid)


def same(one: Validation, other: Validation) -> bool:
    return (
        one.images == other.images
        and one.means == other.means
        and all(np.array_equal(values, other.per_image[name]) for name, values in one.per_image.items())
        and one.grid == other.grid
    )


def test_the_measurement_of_test_images_comes_back(tmp_path: Path) -> None:
    metrics = {"val/psnr": 20.5, "test/psnr": 30.5}
    kept = {"metrics": metrics, **_kept(measured(20.0)), "test": _kept(measured(30.0))}
    torch.save({"step": 8, "report": kept}, tmp_path / "state.pt")
    report = report_of(tmp_path, torch.load(tmp_path / "state.pt", weights_only=True))
    assert (report.step, report.metrics, report.repeated) == (8, metrics, True)
    assert report.test is not None and same(report.test, measured(30.0)) and same(report.validation, measured(20.0))


def test_the_picture_of_an_earlier_checkpoint_comes_back(tmp_path: Path) -> None:
    """It was kept as pixels."""
    kept = {"metrics": {"val/psnr": 20.5}, **_kept(measured(20.0))}
    kept["grid"] = torch.full((2, 6, 3), 20, dtype=torch.uint8)
    assert same(report_of(tmp_path, {"step": 8, "report": kept}).validation, measured(20.0))


def test_a_trial_of_the_search_has_none(tmp_path: Path) -> None:
    kept = {"metrics": {"val/psnr": 20.5}, **_kept(measured(20.0)), "test": None}
    assert report_of(tmp_path, {"step": 8, "report": kept}).test is None


def test_a_checkpoint_of_version_0_1_has_the_values_of_its_files(tmp_path: Path) -> None:
    measured(20.0).write(tmp_path, 8)
    report = report_of(tmp_path, {"step": 8})
    assert report.metrics == {"val/psnr": 20.5} and report.test is None and same(report.validation, measured(20.0))
