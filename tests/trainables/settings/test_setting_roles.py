"""Meaning, limits and roles of every setting, and the behaviour that follows from them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from search_spaces import Choice, Point, SearchSpace
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings, field_name
from trainables.common.errors import InputError
from trainables.methods.build import method_class
from trainables.pretrained.finished_trial import SETTINGS, check_asked
from trainables.restorer import restoration_settings
from trainables.settings import TrialSettings, flatten, is_read, override, reason_unread
from trainables.settings.methods import COMMON, METHODS
from trainables.settings.presets import preset
from trainables.settings.roles import (
    ADVERSARIAL,
    FLAGS,
    PATHS,
    RESTORES,
    ROLES,
    SHARED,
    SIMULATED,
    TRAINING_ONLY,
    WEIGHT_PATHS,
    WHEN_RESTORING,
    is_among,
    names,
)
from trainables.settings.setting import GIVEN, Limits, Roles, meanings

SAMPLE = preset("sample").trial
NAMES = tuple(flatten(SAMPLE))
LEAVES = {name: roles for name, roles in ROLES.items() if not name.endswith(".")}


def sample_of(method: str, **changes: Any) -> TrialSettings:
    """The `sample` preset's trial of a method, with changes; `__` in a name stands for a dot."""
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return override(SAMPLE, {"method": method, **preset("sample").methods.get(method, {}), **given})


def other_value(name: str) -> Any:
    """Another value that the setting accepts."""
    value, limits = flatten(SAMPLE)[name], LEAVES[name].within
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) and LEAVES[name].path:
        return "elsewhere"
    for candidate in (
        1,
        2,
        3,
        0.5,
        "fp16",
        "none",
        "wavelet",
        "leading",
        "ancestral",
        "cosine",
        "constant",
        "hinge",
        "lpips",
        "online",
    ):
        if isinstance(candidate, int | float) and limits and not Limits(*limits).hold(candidate):
            continue
        try:
            changed = override(SAMPLE, {name: candidate})
        except InputError:
            continue
        if changed != SAMPLE:
            return candidate
    raise AssertionError(name)


def reader(name: str) -> str:
    """The first method that reads the setting."""
    return next(method for method in METHODS if is_read(name, (method,)))


def space_of(method: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a space with one point that searches these settings."""
    parameters = {name: Choice((value,)) for name, value in values.items()}
    space = SearchSpace("own", "Is it?", method, parameters, (Point("as it is", values),), "val/psnr")
    monkeypatch.setattr(search_spaces, "load", lambda name: space)
    return space.name


def refusal(**settings: Any) -> str:
    try:
        resolve(SweepSettings(**settings))
    except InputError as error:
        return str(error)
    return ""


# Every field.


def test_roles_cover_every_setting() -> None:
    assert tuple(LEAVES) == NAMES


def test_every_setting_has_a_meaning() -> None:
    found = meanings(TrialSettings)
    assert not [name for name in NAMES if name not in found]
    assert all(len(text) > 8 and text.endswith((".", ")")) for text in found.values())


def test_meanings_are_the_texts_of_docstrings() -> None:
    found = meanings(TrialSettings)
    assert found["lora.dropout"] == "dropout probability at the input of the updates while training, in [0, 1)."
    text = "Adam's decay rates, in [0, 1). Adversarial training needs lower ones."
    assert found["training.beta1"] == found["training.beta2"] == text
    assert found["data.window_shards"].startswith("for stores larger than a machine's disk. 0 draws the training rows")
    assert found["data.window_shards"].endswith("a trial keeps at most 2 n shards of a bucket on its disk.")
    assert found["pairs.degradation.jpeg_range2"] == found["pairs.degradation.jpeg_range"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("weights", "source", "checkpoint"))])
def test_settings_named_like_paths_have_the_path_role(name: str) -> None:
    assert LEAVES[name].path in ("images", "weights")


def test_roles_name_existing_settings_and_values() -> None:
    values = flatten(SAMPLE)
    for name, roles in ROLES.items():
        assert set(roles.methods) <= set(METHODS), name
        assert roles.restores in ("", "frozen part", "sampling") and roles.trained in ("", "at most", "equal"), name
        for other, value in [one for others in roles.disabling for one in others.items()]:
            assert other in values and (value == GIVEN or type(values[other]) in (type(value), float)), name
    with pytest.raises(TypeError, match="privat"):
        Roles(privat=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", [name for name, roles in LEAVES.items() if roles.within])
def test_limits_of_a_field_are_checked(name: str) -> None:
    limits, value = Limits(*LEAVES[name].within), flatten(SAMPLE)[name]  # type: ignore[misc]  # parametrised by it
    below = limits.low if limits.open_low else limits.low - 1
    above = limits.high if limits.open_high else limits.high * 2
    for outside in (below, above) if math.isfinite(above) else (below,):
        outside = type(value[0] if isinstance(value, tuple) else value)(outside)
        given = (outside,) * len(value) if isinstance(value, tuple) else outside
        with pytest.raises(InputError) as refused:
            override(SAMPLE, {name: given})
        assert str(refused.value) == f"{name}={given}: expected {'each ' if isinstance(value, tuple) else ''}{limits}"


# Derived sets, and their effects.


@pytest.mark.parametrize("role", [item.name for item in dataclasses.fields(Roles)])
def test_every_role_is_used(role: str) -> None:
    assert names(role)


def test_common_sections_are_listed_by_no_method() -> None:
    listed = {section for entry in METHODS.values() for section in entry.reads}
    assert {name[:-1] for name in ROLES if name.count(".") == 1 and name.endswith(".")} - listed == set(COMMON)


@pytest.mark.parametrize("name", NAMES)
def test_shared_settings_cannot_be_searched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(space=space_of(reader(name), {name: str(flatten(SAMPLE)[name])}, monkeypatch))
    assert ("is the same for all trials of a sweep" in message) == is_among(name, SHARED)


@pytest.mark.parametrize("name", PATHS)
def test_paths_become_absolute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    method = reader(name)

    def resolved(value: str) -> object:
        space = space_of(method, {}, monkeypatch)
        targets = (("data.source", "targets"),) if name == "data.input" else ()
        return resolve(SweepSettings(space, set=((name, value), *targets))).changes[method][name]

    assert resolved("there") == str(tmp_path / "there")
    assert resolved("owner/name") == ("owner/name" if ROLES[name].hub else str(tmp_path / "owner/name"))
    for builtin in ROLES[name].builtin:
        assert resolved(builtin) == builtin
    assert name in ("data.source", "data.input") or name in WEIGHT_PATHS


@pytest.mark.parametrize("name", FLAGS)
def test_flag_and_set_for_one_setting_are_refused(name: str) -> None:
    value = 7 if isinstance(flatten(SAMPLE)[name], int) else "shipped"
    given = {field_name(FLAGS[name]): value}
    assert f"{FLAGS[name]} {value}" in refusal(space="sinsr_loss_ratios", set=((name, str(value)),), **given)


@pytest.mark.parametrize("method", METHODS)
def test_only_restoring_settings_of_a_finished_trial_change(method: str, tmp_path: Path) -> None:
    """They do not change the network, which would not load. Settings of training are refused."""
    trained = sample_of(method)
    (tmp_path / SETTINGS).write_text(json.dumps(flatten(trained)))
    known, values = restoration_settings(tmp_path), flatten(trained)
    refused = f"--set method={method}: cannot be changed for a finished {method}; expected one of "
    with pytest.raises(InputError, match=f"^{refused}") as error:
        restoration_settings(tmp_path, [("method", method)])
    taken = str(error.value).removeprefix(refused).split(", ")
    assert set(taken) <= set(RESTORES) and "training.precision" in taken
    network = method_class(method).architecture
    for name in taken:
        assert not is_among(name, TRAINING_ONLY)
        assert flatten(restoration_settings(tmp_path, [(name, values[name])]))[name] == values[name]
        if ROLES[name].restores == "sampling":
            assert network(override(known, {name: other_value(name)})) == network(known)
    assert {name: flatten(known)[name] for name in WHEN_RESTORING} == WHEN_RESTORING


def test_every_restoring_setting_is_accepted_for_some_method() -> None:
    for name in RESTORES:
        read = [method for method in METHODS if is_read(name, (method,))]
        off = [other for others in ROLES[name].disabling for other, value in others.items() if value is False]
        enabled = {other.replace(".", "__"): True for other in off} | {"training__max_steps": 0}
        assert any(not reason_unread(name, sample_of(method, checkpoint="x", **enabled)) for method in read), name


@pytest.mark.parametrize("method", METHODS)
def test_training_settings_have_no_effect_without_training(method: str) -> None:
    training = sample_of(method, training__max_steps=1000, perceptual__weight=1.0)
    restoring = override(training, {"training.max_steps": 0, "checkpoint": "x"})
    for name in NAMES:
        if is_read(name, (method,)) and not reason_unread(name, training):
            assert (reason_unread(name, restoring) == "training.max_steps=0") == is_among(name, TRAINING_ONLY), name


@pytest.mark.parametrize("method", [method for method, entry in METHODS.items() if "discriminator" in entry.reads])
def test_adversarial_settings_need_the_adversarial_term(method: str) -> None:
    (weight,) = (name for name in NAMES if name.endswith(".adversarial") and is_read(name, (method,)))
    with_it, without = (sample_of(method, training__max_steps=1000, **{weight: value}) for value in (1.0, 0.0))
    for name in NAMES:
        if is_read(name, (method,)) and not reason_unread(name, with_it):
            assert (reason_unread(name, without) == f"{weight}=0") == is_among(name, ADVERSARIAL), name


def test_simulated_settings_are_read_by_one_simulator() -> None:
    simulators = ("super_resolution", "print_to_camera")
    trials = [sample_of("pix2pix", pairs__scale=1, pairs__simulator=simulator) for simulator in simulators]
    by_one = {name for name in NAMES if any(reason_unread(name, trial).startswith("pairs.sim") for trial in trials)}
    assert {name for name in NAMES if is_among(name, SIMULATED)} == by_one | {
        "pairs.simulator",
        "pairs.crop",
        "pairs.variants",
        "pairs.degraded",
        "pairs.sharpened",
    }


def weighing(predicts: str, **weights: float) -> dict[str, Any]:
    return {"diffusion__prediction_type": predicts, **{f"diffusion__{name}": one for name, one in weights.items()}}


SNR = "diffusion.min_snr"


@pytest.mark.parametrize(
    ("method", "name", "changes", "reason"),
    [
        ("latent_diffusion", SNR, weighing("epsilon", noise_weight=0), "noise_weight=0"),
        ("latent_diffusion", SNR, weighing("sample", noise_weight=0), ""),
        ("latent_diffusion", SNR, weighing("epsilon", reconstruction_weight=0), ""),
        ("latent_diffusion", SNR, weighing("sample", reconstruction_weight=0), "reconstruction_weight=0"),
        ("latent_diffusion", "conv_in.init", {"checkpoint": "x"}, "checkpoint=x and conv_in.frozen=False"),
        ("latent_diffusion", "conv_in.init", {"checkpoint": "x", "conv_in__frozen": True}, ""),
        ("latent_diffusion", "conv_in.init", {}, ""),
        ("controlnet_diffusion", "controlnet.weights", {"checkpoint": "x"}, "checkpoint=x and training.max_steps=300"),
        ("controlnet_diffusion", "controlnet.weights", {"checkpoint": "x", "training__max_steps": 0}, ""),
        ("controlnet_diffusion", "controlnet.weights", {}, ""),
    ],
)
def test_settings_that_others_replace(method: str, name: str, changes: dict[str, Any], reason: str) -> None:
    found = reason_unread(name, sample_of(method, **changes))
    assert found.endswith(reason) and bool(found) == bool(reason)


def test_finished_trial_restores_only_within_its_training() -> None:
    trained = flatten(sample_of("latent_diffusion", diffusion__objective="ccsr", ccsr__t_max=0.5))
    asked = {"diffusion.max_timestep": 2000, "diffusion.objective": "uniform", "ccsr.t_max": 0.9}
    assert asked.keys() == set(names("trained"))
    for name, wanted in asked.items():
        with pytest.raises(
            InputError, match=f"^{name}={wanted}: expected .*{trained[name]}, which it was trained with"
        ):
            check_asked(trained, trained | {name: wanted}, "it")
    # CCSR's range has no effect on uniform training, which covers all timesteps.
    uniform = trained | {"diffusion.objective": "uniform"}
    check_asked(uniform, uniform | {"ccsr.t_max": 0.9}, "it")
