"""Spaces: each can be swept with every preset, and an invalid space is refused when it is defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

import search_spaces
from search_spaces import Choice, Float, Int, Point, SearchSpace, Value, When
from sweeps.planning.question import Question, resolve
from sweeps.planning.settings import SweepSettings
from sweeps.running.search import draw
from trainables.common.errors import InputError
from trainables.data.stages.needed import needed_stages
from trainables.methods.build import method_class
from trainables.metrics import METRICS
from trainables.settings import flatten, override, reason_unread
from trainables.settings.methods import METHODS
from trainables.settings.presets import PRESETS, preset

NAMES = search_spaces.names()
TRAINING = [name for name in NAMES if search_spaces.load(name).trains]


def ask(name: str, preset_name: str = "sample") -> Question:
    """The question as from the command line."""
    needs_data = not PRESETS[preset_name].trial.data.source
    return resolve(SweepSettings(name, preset=preset_name, data="photographs" if needs_data else ""))


def proposals(space: SearchSpace, count: int) -> list[dict[str, Value]]:
    """The configurations that a random search would try."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [draw(space, study.ask()) for _ in range(count)]


def check_trials(question: Question) -> None:
    """Every point and 20 proposals are trials with their values and their method."""
    space = question.space
    for values in [*(point.values for point in space.points), *proposals(space, 20)]:
        assert list(values) == space.active(values)
        assert all(space.distributions[key].contains(value) for key, value in values.items())
        trial = question.trial_with(values, seed_offset=2)
        as_text = override(trial, {key: str(value) for key, value in values.items()})
        assert as_text == trial and trial.training.seed == 2
        assert trial.method == values.get("method", space.method)
        assert {key: flatten(trial)[key] for key in space.fixed} == dict(space.fixed)


def broken(**changes: Any) -> SearchSpace:
    """A valid space with one change."""
    sound: dict[str, Any] = {
        "name": "frozen_input",
        "question": "Should the first convolution stay frozen?",
        "method": "sinsr",
        "parameters": {"sinsr.inversion": Float(0.1, 10.0, log=True), "sinsr.draws": Int(1, 8)},
        "points": (Point("paper", {"sinsr.inversion": 1.0, "sinsr.draws": 4}),),
        "objective": "val/psnr",
    }
    return SearchSpace(**(sound | changes))


def test_shipped_spaces_exist() -> None:
    assert "sinsr_loss_ratios" in NAMES
    assert "space" not in NAMES
    with pytest.raises(KeyError, match=r"no space 'x'; the spaces are: .*sinsr_loss_ratios"):
        search_spaces.load("x")


@pytest.mark.parametrize("name", NAMES)
def test_space_is_complete(name: str) -> None:
    space = search_spaces.load(name)
    assert space.question.endswith("?")
    assert space.methods[0] == space.method and set(space.methods) <= set(METHODS)
    assert space.objective == "perceptual" or space.objective in METRICS
    assert space.baseline == space.points[0]
    assert {criterion.metric for criterion in space.criteria} <= set(METRICS)
    read = frozenset().union(*(METHODS[method].sections for method in space.methods))
    assert {key.partition(".")[0] for key in {**space.parameters, **space.fixed}} <= read | {"method"}


PRINT_SPACES = (  # the questions about printed and photographed pictures
    "beat_pix2pix",
    "conditioning",
    "conv_in_freezing",
    "fidelity_weight",
    "inference_steps",
    "latent_or_pixel",
    "lora",
    "max_timestep",
    "perceptual_frequency",
    "prediction_type",
)
SUPER_RESOLUTION_SPACES = ("resshift_schedule", "sinsr_loss_ratios")


def test_each_question_has_the_preset_on_which_it_can_be_answered() -> None:
    assert {search_spaces.load(name).preset for name in PRINT_SPACES} == {"sample-print"}
    assert {search_spaces.load(name).preset for name in SUPER_RESOLUTION_SPACES} == {"sample"}


@pytest.mark.parametrize("name", search_spaces.names())
def test_spaces_with_latents_have_the_input_and_its_decoded_latent_as_controls(name: str) -> None:
    question = ask(name, search_spaces.load(name).preset)
    controls = question.space.controls
    assert "bicubic" in controls
    if any(METHODS[method].latents for method in question.space.methods):
        assert "input_latent" in controls


@pytest.mark.parametrize("preset_name", PRESETS)
@pytest.mark.parametrize("name", TRAINING)
def test_proposals_and_points_are_valid_for_every_preset(name: str, preset_name: str) -> None:
    """Except for methods that restore enlarged images, with presets whose images are as large as their targets."""
    space, scale = search_spaces.load(name), PRESETS[preset_name].trial.pairs.scale
    if scale != 4 and any("network" in METHODS[method].sections for method in space.methods):
        with pytest.raises(InputError) as refused:
            ask(name, preset_name)
        own = f"--preset {preset_name}: "
        assert str(refused.value).startswith(
            (f"{own}pairs.scale=1: expected 4", f"{own}network.image_size=64: expected")
        )
        assert f"; --space {name} fits the presets sample, sinsr-stage1, " in str(refused.value)
    else:
        check_trials(ask(name, preset_name))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRAINING])
def test_proposals_and_points_are_valid_with_the_shipped_trial(name: str) -> None:
    question = ask(name, search_spaces.load(name).preset)
    check_trials(question)
    assert (question.trial.training.max_steps, question.trial.checkpoint) == (0, "shipped")


@pytest.mark.parametrize("name", TRAINING)
def test_trials_of_a_method_share_prepared_data(name: str, tmp_path: Path) -> None:
    question = ask(name)
    stores: dict[str, set[tuple[Path, ...]]] = {}
    for values in [*(point.values for point in question.space.points), *proposals(question.space, 5)]:
        trial = question.trial_with(values)
        stages = needed_stages(trial, tmp_path, method_class(trial.method).columns(trial))
        stores.setdefault(trial.method, set()).add(tuple(stage.folder for stage in stages))
    assert all(len(different) == 1 for different in stores.values())


def test_conditional_parameter_is_drawn_only_if_it_exists() -> None:
    """Also if its condition depends on another conditional parameter."""
    space = broken(
        parameters={
            "lora.rank": Choice((0, 4, 8)),
            "lora.dropout": When({"lora.rank": (4, 8)}, Float(0.0, 0.5)),
            "lora.targets": When({"lora.rank": (8,)}, Choice(("to_q", "to_v"))),
            "lora.alpha": When({"lora.targets": ("to_q",)}, Int(1, 8)),
        },
        points=(Point("whole", {"lora.rank": 0}), Point("low", {"lora.rank": 4, "lora.dropout": 0.1})),
    )
    drawn = proposals(space, 60)
    assert {tuple(values) for values in drawn} == {
        ("lora.rank",),
        ("lora.rank", "lora.dropout"),
        ("lora.rank", "lora.dropout", "lora.targets"),
        ("lora.rank", "lora.dropout", "lora.targets", "lora.alpha"),
    }
    for values in drawn:
        assert len(values) == 1 + (values["lora.rank"] != 0) + (values["lora.rank"] == 8) + (
            values.get("lora.targets") == "to_q"
        )
        assert all(space.distributions[name].contains(value) for name, value in values.items())


def test_edges_contain_the_ends_of_every_parameter() -> None:
    """Together with all parameters that its condition needs."""
    space = broken(
        parameters={
            "lora.rank": Choice((0, 4, 8)),
            "lora.targets": When({"lora.rank": (8,)}, Choice(("to_q", "to_v"))),
            "lora.dropout": When({"lora.targets": ("to_v",)}, Float(0.0, 0.5)),
            "sinsr.draws": Int(1, 8),
        },
        points=(Point("whole", {"lora.rank": 0, "sinsr.draws": 4}),),
    )
    for name, values in {"lora.rank": (0, 4, 8), "lora.targets": ("to_q", "to_v"), "lora.dropout": (0.0, 0.5)}.items():
        assert {edge[name] for edge in space.edges if name in edge} == set(values)
    assert {edge["sinsr.draws"] for edge in space.edges} == {1, 8}
    assert all(list(edge) == space.active(edge) for edge in space.edges)


def test_range_beyond_accepted_values_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the start, and not when a proposal reaches it after hours."""
    values = {"sinsr.inversion": 1.0, "sinsr.draws": 4}
    wide = broken(
        parameters={"sinsr.inversion": Float(-1.0, 10.0), "sinsr.draws": Int(1, 8)}, points=(Point("paper", values),)
    )
    monkeypatch.setattr(search_spaces, "load", lambda name: wide)
    with pytest.raises(
        InputError, match=r"^--space frozen_input: sinsr.inversion=-1.0: expected a weight of 0 or more"
    ):
        ask("frozen_input")


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("lora", {"method": "latent_diffusion", "perceptual.weight": 0, "perceptual.every": 4}, "perceptual.weight=0"),
        ("max_timestep", {"lora.rank": 0, "lora.targets": "to_q"}, "lora.rank=0"),
        # Several settings, of which each disables it, and several that disable it together.
        ("conditioning", {"controlnet.condition": "latent", "controlnet.embedding_channels": "8,16,32"}, "=latent"),
        (
            "one_step_timestep",
            {"one_step.distillation": 0, "one_step.classifier_distillation": 0, "one_step.guidance": 2},
            "one_step.distillation=0.0 and one_step.classifier_distillation=0.0",
        ),
        ("max_timestep", {"ccsr.t_max": 0.5}, "diffusion.objective=uniform"),
        ("conv_in_freezing", {"diffusion.objective": "ccsr", "ccsr.t_min": 0.1}, "method=latent_diffusion"),
        (
            "max_timestep",
            {"diffusion.prediction_type": "sample", "diffusion.noise_weight": 2},
            "prediction_type=sample",
        ),
        ("sinsr_loss_ratios", {"pairs.print.motion_blur": "0,1"}, "pairs.simulator=super_resolution"),
        ("conv_in_freezing", {"diffusion.objective": "ccsr", "diffusion.spacing": "leading"}, "objective=ccsr"),
        ("inference_steps", {"training.batch_size": 4}, "training.max_steps=0"),
        ("inference_steps", {"perceptual.weight": 2}, "training.max_steps=0"),
        ("perceptual_frequency", {"method": "ccsr", "ccsr.adversarial": 0, "discriminator.ndf": 8}, "adversarial=0"),
        # With several methods, only those that read the section matter.
        ("latent_or_pixel", {"lora.rank": 0, "lora.dropout": 0.1}, "lora.rank=0"),
        ("beat_pix2pix", {"ccsr.t_max": 0.5}, "diffusion.objective=uniform"),
    ],
)
def test_flag_without_effect_is_refused_with_reason(name: str, flags: dict[str, Any], reason: str) -> None:
    *others, last = given = tuple((key, str(value)) for key, value in flags.items())
    with pytest.raises(InputError, match=rf"^--set {last[0]}={last[1]}: has no effect with .*{reason}$"):
        resolve(SweepSettings(name, set=given))
    if others:
        resolve(SweepSettings(name, set=tuple(others)))


@pytest.mark.parametrize("name", ["ccsr_adversarial", "cfw_adversarial"])
def test_searched_term_must_start_before_training_ends(name: str) -> None:
    section = name.removesuffix("_adversarial")
    why = f"{section}.adversarial_start=60 and training.max_steps=60"
    with pytest.raises(
        InputError, match=f"^--space {name}: searches {section}.adversarial, which has no effect .*{why}$"
    ):
        resolve(SweepSettings(name, max_steps=60))
    resolve(SweepSettings(name, max_steps=61))


@pytest.mark.parametrize("name", METHODS)
def test_gradient_checkpointing_is_read_only_by_networks_that_support_it(name: str) -> None:
    """`test_every_method_trains.py` measures which ones do."""
    reason = reason_unread("training.gradient_checkpointing", override(preset("sample").trial, {"method": name}))
    assert reason == ("" if METHODS[name].gradient_checkpointing else f"method={name}")


def test_condition_holds_only_if_all_its_parts_hold() -> None:
    both = When({"method": ("ccsr", "pix2pix"), "lora.rank": (4,)}, Float(0.0, 1.0))
    assert both.holds({"method": "ccsr", "lora.rank": 4, "lora.alpha": 1.0})
    for values in ({"method": "ccsr"}, {"method": "ccsr", "lora.rank": 8}, {"method": "sinsr", "lora.rank": 4}, {}):
        assert not both.holds(values)


def test_methods_are_the_baselines_and_the_searched_ones() -> None:
    assert broken().methods == ("sinsr",)
    searched = broken(
        parameters={"method": Choice(("resshift", "sinsr"))}, points=(Point("student", {"method": "sinsr"}),)
    )
    assert searched.methods == ("sinsr", "resshift")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": ()}, "space frozen_input: needs at least one point, the baseline"),
        (
            {"points": (Point("half", {"sinsr.draws": 4}),)},
            r"point 'half': gives \['sinsr.draws'\], but its parameters are",
        ),
        (
            {"points": (Point("far", {"sinsr.inversion": 100.0, "sinsr.draws": 4}),)},
            r"point 'far': sinsr.inversion=100.0 is not in 0.1 to 10 \(log\)",
        ),
        (
            {"points": (Point("odd", {"sinsr.inversion": 1.0, "sinsr.draws": 2.5}),)},
            r"point 'odd': sinsr.draws=2.5 is not in whole numbers 1 to 8",
        ),
        (
            {"points": (Point("same", {"sinsr.inversion": 1.0, "sinsr.draws": 4}),) * 2},
            r"the labels \['same', 'same'\] must differ",
        ),
        ({"fixed": {"sinsr.draws": 2}}, "sinsr.draws cannot be both fixed and searched"),
        (
            {
                "parameters": {
                    "sinsr.draws": When({"sinsr.inversion": (1.0,)}, Int(1, 8)),
                    "sinsr.inversion": Float(0.1, 10.0),
                }
            },
            "space frozen_input: sinsr.draws depends on sinsr.inversion, which must come before it",
        ),
        (
            {"parameters": {"sinsr.draws": When({"sinsr.draws": (4,)}, Int(1, 8))}},
            "sinsr.draws depends on sinsr.draws, which must come before it",
        ),
        (
            {
                "parameters": {
                    "sinsr.inversion": Float(0.1, 10.0),
                    "sinsr.draws": When({"sinsr.inversion": (0.5,)}, Int(1, 8)),
                }
            },
            r"point 'paper': gives \['sinsr.draws', 'sinsr.inversion'\], but its parameters are \['sinsr.inversion'\]",
        ),
        (
            {
                "parameters": {
                    "sinsr.inversion": Float(0.1, 10.0),
                    "sinsr.draws": When({"sinsr.inversion": (1.0,)}, Int(1, 8)),
                },
                "points": (Point("bare", {"sinsr.inversion": 1.0}),),
            },
            r"point 'bare': gives \['sinsr.inversion'\], but its parameters are \['sinsr.draws', 'sinsr.inversion'\]",
        ),
    ],
)
def test_invalid_space_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        broken(**changes)


def test_parameter_must_be_a_setting() -> None:
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
    ],
)
def test_empty_distribution_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="needs"):
        make()


def test_distribution_contains_its_values() -> None:
    assert [v for v in (0.09, 0.1, 5, 10.0, 10.1, True, "1") if Float(0.1, 10.0).contains(v)] == [0.1, 5, 10.0]
    assert [v for v in (0, 1, 4, 5, 2.0, True) if Int(1, 4).contains(v)] == [1, 4]
    assert Choice(("x0", "epsilon")).contains("x0") and not Choice(("x0", "epsilon")).contains("v")
