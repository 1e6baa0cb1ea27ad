"""Spaces: every one there is can be swept with every preset, and a broken one is refused when it is defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

import search_spaces
from search_spaces import Choice, Float, Int, Point, SearchSpace
from sweeps.search import optuna_distribution
from trainables.data.prepare import plan
from trainables.errors import InputError
from trainables.metrics import METRICS
from trainables.presets import PRESETS, preset
from trainables.registry import METHODS, method_class
from trainables.settings import flatten, override

NAMES = search_spaces.names()


def broken(**changes: Any) -> SearchSpace:
    """A sound space with one thing changed."""
    sound: dict[str, Any] = {
        "name": "frozen_input",
        "question": "Should the first convolution stay frozen?",
        "method": "sinsr",
        "parameters": {"sinsr.inversion": Float(0.1, 10.0, log=True), "sinsr.draws": Int(1, 8)},
        "points": (Point("paper", {"sinsr.inversion": 1.0, "sinsr.draws": 4}),),
        "objective": "val/psnr",
    }
    return SearchSpace(**(sound | changes))


def test_the_shipped_question_is_there() -> None:
    assert "sinsr_loss_ratios" in NAMES
    assert "space" not in NAMES
    with pytest.raises(KeyError, match=r"no space 'x'; the spaces are: .*sinsr_loss_ratios"):
        search_spaces.load("x")


@pytest.mark.parametrize("name", NAMES)
def test_a_space_is_complete(name: str) -> None:
    space = search_spaces.load(name)
    assert space.question.endswith("?")
    assert space.method in METHODS
    assert space.objective == "perceptual" or space.objective in METRICS
    assert space.baseline == space.points[0]


@pytest.mark.parametrize("preset_name", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_proposal_and_point_is_a_valid_trial_of_every_preset(name: str, preset_name: str) -> None:
    space = search_spaces.load(name)
    base = override(preset(preset_name).trial, {**space.fixed, "method": space.method})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions = {key: optuna_distribution(d) for key, d in space.parameters.items()}
    proposals = [study.ask(distributions).params for _ in range(50)]
    for values in [*proposals, *(point.values for point in space.points)]:
        assert all(space.parameters[key].contains(value) for key, value in values.items())
        settings = flatten(override(base, values))
        assert {key: settings[key] for key in values} == values


def test_all_loss_ratios_train_on_the_same_prepared_data(tmp_path: Path) -> None:
    space = search_spaces.load("sinsr_loss_ratios")
    base = override(preset("sample").trial, space.fixed)
    columns = method_class(space.method).columns(base)
    stores = {tuple(s.path for s in plan(override(base, p.values), tmp_path, columns)) for p in space.points}
    assert len(stores) == 1


def test_the_queue_takes_every_point_once_before_it_repeats_one() -> None:
    values = {"sinsr.inversion": 1.0, "sinsr.draws": 4}
    space = broken(points=(Point("a", values, seeds=3), Point("b", values), Point("c", values, seeds=2)))
    assert [(point.label, seed) for point, seed in space.queue] == [
        ("a", 0),
        ("b", 0),
        ("c", 0),
        ("a", 1),
        ("c", 1),
        ("a", 2),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_baseline_comes_first_and_every_point_in_each_of_its_seeds(name: str) -> None:
    space = search_spaces.load(name)
    assert space.queue[0] == (space.baseline, 0)
    for point in space.points:
        assert [seed for queued, seed in space.queue if queued is point] == list(range(point.seeds))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": ()}, "space frozen_input: needs at least one point, the baseline"),
        (
            {"points": (Point("half", {"sinsr.draws": 4}),)},
            r"point 'half': gives \['sinsr.draws'\], but the parameters",
        ),
        (
            {"points": (Point("far", {"sinsr.inversion": 100.0, "sinsr.draws": 4}),)},
            r"point 'far': sinsr.inversion=100.0 is not in Float\(low=0.1, high=10.0, log=True\)",
        ),
        (
            {"points": (Point("odd", {"sinsr.inversion": 1.0, "sinsr.draws": 2.5}),)},
            r"point 'odd': sinsr.draws=2.5 is not in Int\(low=1, high=8",
        ),
        (
            {"points": (Point("same", {"sinsr.inversion": 1.0, "sinsr.draws": 4}),) * 2},
            r"the labels \['same', 'same'\] must differ",
        ),
        ({"fixed": {"sinsr.draws": 2}}, "sinsr.draws cannot be both fixed and searched"),
    ],
)
def test_a_broken_space_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        broken(**changes)


def test_a_parameter_that_is_no_setting_is_refused_at_the_door() -> None:
    space = broken(parameters={"sinsr.inverson": Float(0.1, 10.0)}, points=(Point("typo", {"sinsr.inverson": 1.0}),))
    with pytest.raises(InputError, match=r"sinsr.inverson: no such setting; nearest: sinsr.inversion"):
        override(preset("sample").trial, space.baseline.values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Float(1.0, 1.0),
        lambda: Float(2.0, 1.0),
        lambda: Float(0.0, 1.0, log=True),
        lambda: Float(0.0, float("inf")),
        lambda: Float(float("nan"), 1.0),
        lambda: Int(2, 1),
        lambda: Int(0, 4, log=True),
        lambda: Choice(()),
        lambda: Point("never", {}, seeds=0),
    ],
)
def test_a_distribution_without_values_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()


def test_what_a_distribution_contains() -> None:
    assert [v for v in (0.09, 0.1, 5, 10.0, 10.1, True, "1") if Float(0.1, 10.0).contains(v)] == [0.1, 5, 10.0]
    assert [v for v in (0, 1, 4, 5, 2.0, True) if Int(1, 4).contains(v)] == [1, 4]
    assert Choice(("x0", "epsilon")).contains("x0") and not Choice(("x0", "epsilon")).contains("v")
