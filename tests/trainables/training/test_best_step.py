"""`training.keep=best`: which weights, values and pictures a trial keeps, in training and after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.loop import METRICS, Recorder, assert_same, state_of
from trainables.data.prepared import Prepared
from trainables.methods.resshift import ResShift
from trainables.metrics import MetricSet
from trainables.pretrained.finished_trial import WEIGHTS
from trainables.pretrained.weights_file import describe
from trainables.settings import TrialSettings, override
from trainables.training.loop import World, train
from trainables.training.measurements import KeptBy, Validation
from trainables.training.pictures import PICTURES, Pictures
from trainables.training.results import BEST, kept_values, payload, take_validation
from trainables.training.validation import TEST_DRAW, validate

THREE_REPORTS: dict[str, Any] = {"training.max_steps": 6, "training.reports": 3, "training.ema_decay": 0.5}


@pytest.fixture(scope="module")
def settings(small: TrialSettings) -> TrialSettings:
    return override(small, THREE_REPORTS)


@pytest.fixture(scope="module")
def tested(prepared: Prepared) -> Prepared:
    """With the validation pairs as test pairs."""
    return replace(prepared, test_stores=prepared.validation_stores, test_noise=prepared.validation_noise)


def trained(
    settings: TrialSettings,
    prepared: Prepared,
    folder: Path,
    objective: KeptBy | None = None,
    checkpoint: Path | None = None,
) -> Recorder:
    recorder = Recorder(folder)
    train(settings, prepared, METRICS, World(), recorder, checkpoint, objective)
    return recorder


@pytest.fixture(scope="module")
def last(settings: TrialSettings, tested: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """The same training with `training.keep=last`: its checkpoints by step, and its reports."""
    folder = tmp_path_factory.mktemp("last")
    return folder, trained(settings, tested, folder)


def one_of(recorder: Recorder, larger: bool) -> int:
    """The step of the best report."""
    best = max(recorder.reports, key=lambda report: report.metrics["val/psnr"] * (1 if larger else -1))
    return best.step


def same(ours: Validation, theirs: Validation) -> None:
    assert_same(ours.per_image, theirs.per_image)
    assert ours.images == theirs.images and ours.grid == theirs.grid


@pytest.mark.parametrize("larger", [True, False])  # with one of them, another step than the last is the best
def test_checkpoint_keeps_the_best_step_and_still_continues_from_the_last(
    larger: bool, settings: TrialSettings, tested: Prepared, last: tuple[Path, Recorder], tmp_path: Path
) -> None:
    folder, undisturbed = last
    best, keeping = one_of(undisturbed, larger), override(settings, {"training.keep": "best"})
    recorder = trained(keeping, tested, tmp_path, KeptBy("val/psnr", larger))
    assert [report.step for report in recorder.reports] == [2, 4, 6]
    # Training and the curve are those without: only what is kept differs.
    assert recorder.metrics("val/", "loss/") == undisturbed.metrics("val/", "loss/")
    for part in ("networks", "ema", "optimisation"):
        assert_same(state_of(tmp_path / "6")[part], state_of(folder / "6")[part])
    assert_same(load_file(tmp_path / "6" / WEIGHTS), load_file(folder / str(best) / WEIGHTS))
    same(Validation.read(tmp_path / "6"), Validation.read(folder / str(best)))
    name = PICTURES["validation"]
    ours, theirs = Pictures.read(tmp_path / "6" / name), Pictures.read(folder / str(best) / name)
    assert ours.images == theirs.images and np.array_equal(ours.rows, theirs.rows)
    report = recorder.reports[-1]
    assert report.best is not None and report.best.step == best
    assert describe(tmp_path / "6" / WEIGHTS)[0] == "resshift"


def test_test_photographs_are_measured_with_the_kept_weights(
    settings: TrialSettings, tested: Prepared, last: tuple[Path, Recorder], tmp_path: Path
) -> None:
    folder, undisturbed = last
    for larger in (True, False):
        best = one_of(undisturbed, larger)
        keeping = override(settings, {"training.keep": "best"})
        recorder = trained(keeping, tested, tmp_path / str(larger), KeptBy("val/psnr", larger))
        found = recorder.reports[-1].test
        assert found is not None
        method = ResShift(settings, torch.device("cpu"))
        method.networks["denoiser"].load_state_dict(load_file(folder / str(best) / WEIGHTS))
        method.networks.eval()
        batch = settings.training.validation_batch
        expected = validate(method.restore, tested.test, MetricSet(METRICS), batch, torch.device("cpu"), TEST_DRAW)
        np.testing.assert_allclose(found.per_image["val/psnr"], expected.per_image["val/psnr"], rtol=1e-6)


@pytest.mark.parametrize("larger", [True, False])
def test_interrupted_trial_keeps_the_step_of_an_uninterrupted_one(
    larger: bool, settings: TrialSettings, tested: Prepared, tmp_path: Path
) -> None:
    keeping, objective = override(settings, {"training.keep": "best"}), KeptBy("val/psnr", larger)
    whole = trained(keeping, tested, tmp_path / "whole", objective)
    second = trained(keeping, tested, tmp_path / "second", objective, tmp_path / "whole" / "4")
    repeated, end = second.reports
    assert repeated.repeated and repeated.best is not None and whole.reports[1].best is not None
    assert (repeated.best.step, repeated.best.value) == (whole.reports[1].best.step, whole.reports[1].best.value)
    same(repeated.best.validation, whole.reports[1].best.validation)
    assert_same(state_of(tmp_path / "second" / "6"), state_of(tmp_path / "whole" / "6"))
    assert_same(load_file(tmp_path / "second" / "6" / WEIGHTS), load_file(tmp_path / "whole" / "6" / WEIGHTS))
    for name in PICTURES.values():
        assert (tmp_path / "second" / "6" / name).read_bytes() == (tmp_path / "whole" / "6" / name).read_bytes()
    assert end.metrics["test/psnr"] == whole.reports[-1].metrics["test/psnr"]


def test_result_carries_the_kept_step(
    settings: TrialSettings, tested: Prepared, last: tuple[Path, Recorder], tmp_path: Path
) -> None:
    _, undisturbed = last
    worst = one_of(undisturbed, larger=False)
    keeping = override(settings, {"training.keep": "best"})
    report = trained(keeping, tested, tmp_path, KeptBy("val/psnr", False)).reports[-1]
    result = payload(report)
    at_worst = next(each for each in undisturbed.reports if each.step == worst)
    assert result[BEST] == [worst, {"val/psnr": at_worst.metrics["val/psnr"]}]
    assert result["val/psnr"] == undisturbed.reports[-1].metrics["val/psnr"]
    assert kept_values(result)["val/psnr"] == at_worst.metrics["val/psnr"]
    values = take_validation(result)[0].per_image["val/psnr"]
    assert values.tolist() == at_worst.validation.per_image["val/psnr"].tolist()
    without = payload(undisturbed.reports[-1])
    assert BEST not in without and kept_values(without) == without


def test_best_step_needs_an_objective(settings: TrialSettings, tested: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.keep=best: expected an objective"):
        trained(override(settings, {"training.keep": "best"}), tested, tmp_path)
