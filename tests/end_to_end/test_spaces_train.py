"""Every question runs: its trials train two steps, or restore with shipped weights, and measure the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

import search_spaces
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from sweeps.running.search import draw
from trainables.data.prepare import prepare
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.training.loop import World, train
from trainables.training.reporting import Report

# As few pairs and sampling steps as possible; everything else as in the preset.
FEW: dict[str, Any] = {
    "pairs.train_pairs": 4,
    "pairs.validation_pairs": 2,
    "training.batch_size": 2,
    "training.validation_batch": 2,
    "training.reports": 1,
    "training.stability_draws": 2,
}
SHORTER: dict[str, dict[str, Any]] = {
    "sinsr": {"sinsr.draws": 1},
    "resshift": {"resshift.steps": 4},
    "pix2pix": {"training.updates": 2},
    "latent_diffusion": {"diffusion.inference_steps": 2},
    "controlnet_diffusion": {"diffusion.inference_steps": 2},
    "stablesr": {"diffusion.inference_steps": 2},
    "pixel_diffusion": {"diffusion.inference_steps": 2},
    "stablesr_cfw": {"first_stage.draws": 1},
    "ccsr": {"first_stage.draws": 1, "ccsr.steps": 6},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def run(settings: TrialSettings, stores: Path) -> list[Report]:
    reports: list[Report] = []
    prepared = prepare(settings, stores, method_class(settings.method).columns(settings))
    train(settings, prepared, ("val/psnr", "val/st_lpips"), World(), lambda report, write: reports.append(report))
    return reports


@pytest.mark.slow
@pytest.mark.parametrize("name", search_spaces.names())
def test_trials_of_a_space_train_two_steps(name: str, stores: Path) -> None:
    """The first point of every method, and the first random proposal."""
    space = search_spaces.load(name)
    question = resolve(SweepSettings(name))
    firsts = {point.values.get("method", space.method): dict(point.values) for point in reversed(space.points)}
    proposed = draw(space, optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask())
    for values in (*firsts.values(), proposed):
        trial = question.trial_with(values)
        few = {key: value for key, value in {**FEW, **SHORTER.get(trial.method, {})}.items() if key not in values}
        steps = {"training.max_steps": 2, "training.warmup_steps": 1} if space.trains else {}
        report = run(override(trial, few | steps), stores)[-1]  # the first one may be of the start
        assert report.step == (2 if space.trains else 0)
        assert report.metrics["val/psnr"] > 3 and report.metrics["val/l_std"] >= 0
        assert bool([tag for tag in report.metrics if tag.startswith("loss/")]) == space.trains
