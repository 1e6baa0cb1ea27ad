"""What a confirmation trains and costs, in numbers, in the plan and on the command line."""

from __future__ import annotations

import math

import pytest
import yaml

from sweeps.planning.confirmation import Confirmation, leaders
from sweeps.planning.run_settings import settings_in
from sweeps.planning.settings import SweepSettings
from trainables.common.errors import InputError


def test_leaders_are_the_best_by_mean_without_the_baseline() -> None:
    found = {"a": [1.0], "base": [9.0], "b": [3.0, 4.0], "c": [2.0, 6.0], "nan": [math.nan], "none": []}
    assert leaders(found, "base", 2, larger_is_better=True) == ["c", "b"]
    assert leaders(found, "base", 9, larger_is_better=False) == ["a", "b", "c"]
    assert leaders({"base": [1.0]}, "base", 2, larger_is_better=True) == []


@pytest.mark.parametrize(("finalists", "seeds", "others", "trials"), [(2, 3, 9, 9), (2, 3, 1, 6), (2, 3, 0, 0)])
def test_number_of_trials(finalists: int, seeds: int, others: int, trials: int) -> None:
    assert Confirmation(finalists, seeds).trials(others) == trials


def test_one_seed_is_refused() -> None:
    with pytest.raises(InputError, match=r"--seeds 1: expected 2 or more; one seed does not show"):
        SweepSettings("x", seeds=1)
    with pytest.raises(InputError, match=r"--confirm -1: expected 0 or more"):
        SweepSettings("x", confirm=-1)


def recorded(settings_file: bytes) -> SweepSettings:
    return settings_in(yaml.safe_load(settings_file))[0]


def test_run_of_version_01_has_no_confirmation_and_keeps_its_split() -> None:
    """Its photographs for test were for training, and its answer names leaders."""
    settings, _ = settings_in(
        yaml.safe_load(b"command: {space: x, trials: 4, set: []}\nmetrics: [val/psnr]\nstores: {}\n")
    )
    assert (settings.confirm, settings.set) == (0, (("data.test_share", "0"),))
    now, _ = settings_in(
        yaml.safe_load(b"command: {space: x, confirm: 1, seeds: 4, set: []}\nmetrics: [val/psnr]\nstores: {}\n")
    )
    assert (now.confirm, now.seeds, now.set) == (1, 4, ())


def test_resumed_run_keeps_the_trials_and_steps_that_its_preset_had() -> None:
    """The presets of a later version may have others."""
    record = b"trials: 7\ntrial: {training.max_steps: 360}\nmetrics: [val/psnr]\nstores: {}\n"
    settings = recorded(b"command: {space: x, set: []}\n" + record)
    assert (settings.trials, settings.max_steps) == (7, 360)
    settings = recorded(b"command: {space: x, trials: 3, max_steps: 9, set: []}\n" + record)
    assert (settings.trials, settings.max_steps) == (3, 9)
    settings = recorded(b"command: {space: x, set: [[training.max_steps, '8']]}\n" + record)
    assert (settings.max_steps, settings.set[0]) == (0, ("training.max_steps", "8"))
    damaged = b"trials: many\ntrial: {training.max_steps: x}\nmetrics: [val/psnr]\nstores: {}\n"
    settings = recorded(b"command: {space: x, set: []}\n" + damaged)
    assert (settings.trials, settings.max_steps) == (0, 0)
