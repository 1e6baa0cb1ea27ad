"""Settings: accepted values, their conversion, and the messages for refused values."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest

from tests.helpers.paths import EXPECTED
from trainables.common.errors import InputError
from trainables.methods.build import method_class
from trainables.methods.method import Method
from trainables.pretrained.resshift import count_parameters
from trainables.settings import TrainingSettings, TrialSettings, flatten, override
from trainables.settings.methods import METHODS, LatentKind
from trainables.settings.presets import PRESETS, preset
from trainables.settings.roles import ROLES
from trainables.settings.setting import Limits

SAMPLE = preset("sample").trial


def changed(**changes: Any) -> dict[str, Any]:
    """The changed settings after `override`; `__` in a name stands for a dot."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    settings = flatten(override(SAMPLE, changes))
    return {name: settings[name] for name in changes}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip_through_text(name: str) -> None:
    """Dotted names and values, written as text, give the same settings again."""
    trial = preset(name).trial
    texts = {key: str(value) for key, value in flatten(trial).items()}
    assert override(SAMPLE, texts) == trial
    assert override(SAMPLE, flatten(trial)) == trial


def test_unknown_preset_is_refused_with_a_list() -> None:
    with pytest.raises(InputError, match=f"--preset huge: .* the presets are {', '.join(PRESETS)}$"):
        preset("huge")


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("training.max_steps", "12", 12),
        ("training.max_steps", np.int64(12), 12),
        ("training.max_steps", 12.0, 12),
        ("training.max_steps", np.float32(12), 12),
        ("training.learning_rate", "1e-3", 1e-3),
        ("training.learning_rate", 1, 1.0),
        ("training.learning_rate", np.float64(0.5), 0.5),
        ("training.gradient_checkpointing", "yes", True),
        ("training.gradient_checkpointing", "False", False),
        ("training.gradient_checkpointing", np.bool_(True), True),
        ("training.precision", "bf16", "bf16"),
        ("training.precision", np.str_("bf16"), "bf16"),
        ("data.source", np.str_("photographs"), "photographs"),
        ("network.attention_resolutions", "16, 8", (16, 8)),
        ("network.attention_resolutions", "(8,)", (8,)),
        ("network.attention_resolutions", [16, np.int32(8)], (16, 8)),
        ("network.attention_resolutions", np.array([16, 8]), (16, 8)),
        ("lora.targets", "to_q, to_out.0", ("to_q", "to_out.0")),
        ("lora.targets", "('to_q', 'to_out.0')", ("to_q", "to_out.0")),
        ("lora.targets", "to_q", ("to_q",)),
        ("lora.targets", ["to_q", np.str_("to_k")], ("to_q", "to_k")),
        ("pairs.degradation.jpeg_range", "50,60", (50.0, 60.0)),
        ("pairs.degradation.resize_prob", (1, 0, 0), (1.0, 0.0, 0.0)),
    ],
)
def test_values_are_converted_to_the_fields_type(name: str, given: Any, read: Any) -> None:
    value = flatten(override(SAMPLE, {name: given}))[name]
    assert value == read and type(value) is type(read)
    if isinstance(read, tuple):
        assert [type(part) for part in value] == [type(part) for part in read]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("training.max_steps", "many", "training.max_steps=many: expected a whole number"),
        ("training.max_steps", 1.5, "training.max_steps=1.5: expected a whole number"),
        ("training.max_steps", True, "training.max_steps=True: expected a whole number"),
        ("training.max_steps", np.bool_(True), "training.max_steps=True: expected a whole number"),
        ("training.max_steps", float("inf"), "training.max_steps=inf: expected a whole number"),
        ("training.max_steps", None, "training.max_steps=None: expected a whole number"),
        ("training.max_steps", -1, "training.max_steps=-1: expected 0 to 2147483647"),
        ("training.max_steps", 0, "training.max_steps=0: expected 1 or more, or 0 with a finished trial"),
        ("training.beta1", 1.0, r"training.beta1=1.0: expected a number in \[0, 1\)"),
        ("training.stability_draws", 0, "training.stability_draws=0: expected 1 to 1000"),
        ("training.learning_rate", "fast", "training.learning_rate=fast: expected a finite number"),
        ("training.learning_rate", True, "training.learning_rate=True: expected a finite number"),
        ("training.learning_rate", "nan", "training.learning_rate=nan: expected a finite number"),
        ("training.learning_rate", 0.0, "training.learning_rate=0.0: expected a number above 0"),
        ("training.weight_decay", float("inf"), "training.weight_decay=inf: expected a finite number"),
        ("training.ema_decay", 1.0, r"training.ema_decay=1.0: expected a number in \[0, 1\)"),
        ("training.accumulate", 3, "training.accumulate=3: expected a divisor of training.batch_size=4"),
        ("training.gradient_checkpointing", "perhaps", "gradient_checkpointing=perhaps: expected true or false"),
        ("training.gradient_checkpointing", 2, "gradient_checkpointing=2: expected true or false"),
        ("training.precision", "fp8", "training.precision=fp8: expected one of fp32, bf16, fp16"),
        ("training.precision", ["fp32"], "training.precision=.*: expected one of fp32, bf16, fp16"),
        ("data.source", 3, "data.source=3: expected text"),
        ("network.attention_resolutions", "8,x", "network.attention_resolutions=x: expected a whole number"),
        ("network.attention_resolutions", 8, "network.attention_resolutions=8: expected whole numbers separated by co"),
        (
            "network.attention_resolutions",
            "7",
            r"attention_resolutions=\(7,\): expected sizes of levels .* 16, 8$",
        ),
        ("network.num_res_blocks", "-1,-1", r"network.num_res_blocks=\(-1, -1\): expected each 1 to 16"),
        ("network.mlp_ratio", "1e30", "network.mlp_ratio=1e\\+30: expected 0.03125 to 64"),
        ("network.channel_mult", "1,2,3", "network.num_res_blocks=.*: expected one number for each of the 3 levels"),
        ("network.model_channels", 48, "network.model_channels=48: expected a multiple of 32"),
        ("pairs.degradation.jpeg_range", "50", "jpeg_range=50: expected 2 values, separated by commas"),
        ("pairs.degradation.jpeg_range", 50, "^pairs.degradation.jpeg_range=50: expected numbers separated by commas"),
        ("pairs.degradation.jpeg_range", "60,50", "^pairs.degradation.jpeg_range=.*1 <= low <= high <= 100"),
        ("pairs.print.jpeg_quality", "60,50", "^pairs.print.jpeg_quality=.*1 <= low <= high <= 100"),
        ("pairs.image_size", 128, "network.image_size=16: expected 32, the latent size of pairs.image_size=128"),
        ("pairs.scale", 2, "pairs.scale=2: expected 4"),
        ("resshift.steps", 1, "resshift.steps=1: expected 2 to 1000"),
        ("resshift.etas_end", 0.02, r"resshift.etas_end=0.02: expected a number in \[0.1, 1\)"),
        ("sinsr.inversion", -1, "sinsr.inversion=-1.0: expected a weight of 0 or more"),
        ("sinsr.draws", 0, "sinsr.draws=0: expected 1 to 1000"),
        ("diffusion.max_timestep", 0, "diffusion.max_timestep=0: expected 1 to 10000"),
        ("diffusion.max_timestep", 20, "diffusion.inference_steps=50: expected 1 to diffusion.max_timestep=20"),
        ("diffusion.fidelity_weight", 1.1, "diffusion.fidelity_weight=1.1: expected a number from 0 to 1"),
        ("diffusion.prediction_type", "x0", "prediction_type=x0: expected one of base, epsilon, sample, v_prediction"),
        ("conv_in.init", "ones", "conv_in.init=ones: expected one of zeros, duplicate"),
        ("lora.rank", -1, "lora.rank=-1: expected a rank of 1 to 4096, or 0 to train the whole UNet"),
        ("lora.targets", (), r"lora.targets=\(\): expected at least one layer name"),
        ("lora.targets", "", r"lora.targets=\(\): expected at least one layer name"),
        ("lora.targets", (3,), "lora.targets=3: expected text"),
        ("lora.targets", 3, "lora.targets=3: expected names separated by commas"),
        ("controlnet.embedding_channels", (), r"controlnet.embedding_channels=\(\): expected positive whole numbers"),
        ("pixel.norm_groups", 48, "pixel.norm_groups=48: expected a divisor of every width of pixel.channels="),
        ("first_stage.draws", 0, "first_stage.draws=0: expected 1 to 1000"),
        ("cfw.strength", -0.1, "cfw.strength=-0.1: expected a number from 0 to 1"),
        ("ccsr.t_min", 0.7, "ccsr.t_min=0.7: expected 0 to below ccsr.t_max=0.6667"),
        ("pix2pix.downs", 4, "pix2pix.downs=4: expected 5 to 14"),
        ("discriminator.layers", 0, "discriminator.layers=0: expected 1 to 12"),
        ("perceptual.every", 0, "perceptual.every=0: expected 1 to 2147483647"),
        ("perceptual.weight", -1, "perceptual.weight=-1.0: expected a weight of 0 or more"),
        ("method", "gan", f"method=gan: expected one of {', '.join(METHODS)}"),
    ],
)
def test_refusal_names_the_value_and_accepted_values(name: str, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        override(SAMPLE, {name: given})
    assert "\n" not in str(caught.value)


def test_all_zero_weights_are_refused_as_a_ratio() -> None:
    with pytest.raises(InputError, match="distillation:inversion:ground_truth=0:0:0: expected a ratio with at least"):
        changed(sinsr__distillation=0, sinsr__inversion=0, sinsr__ground_truth=0)
    assert changed(sinsr__distillation=0, sinsr__inversion=0) == {"sinsr.distillation": 0.0, "sinsr.inversion": 0.0}


NUMBERS = {
    name: value
    for name, value in flatten(SAMPLE).items()
    if not isinstance(value, bool | str) and not (isinstance(value, tuple) and isinstance(value[0], str))
}
"""Every field with one number or several."""

_RELATIVE = {f"pairs.degradation.{name}{end}" for name in ("kernel_prob", "resize_prob") for end in ("", "2")}
_LIMITS = {name: Limits(*ROLES[name].within) for name in NUMBERS if ROLES[name].within}  # type: ignore[misc]  # not None
_SHARES = {
    *("pairs.colour_swap_prob", "ccsr.t_min"),
    *(name for name in NUMBERS if name.startswith("pairs.degradation.") and isinstance(NUMBERS[name], float)),
}
_FROM_ZERO = {
    *(name for name, limits in _LIMITS.items() if limits.hold(0) and name != "training.max_steps"),
    *("pixel.attention_levels", "pairs.degradation.noise_range", "pairs.degradation.noise_range2"),
    *("pairs.degradation.poisson_scale_range", "pairs.degradation.poisson_scale_range2"),
}
_ANY_SIZE = {name for name, limits in _LIMITS.items() if limits.high == math.inf}
_SIGNED = {"pairs.print.exposure", "pairs.print.white_balance"}
_SHAPES = {"pairs.print.halftone_period", "pairs.print.fibre_length", "pairs.print.jpeg_quality"}
_STRENGTHS = {name for name in NUMBERS if name.startswith("pairs.print.")} - _SHAPES
ON_PURPOSE = {
    -1: _SIGNED,
    0: _RELATIVE | _SHARES | _FROM_ZERO | _STRENGTHS | {"pairs.test_pairs", "pairs.test_size"},
    10**30: _RELATIVE | _ANY_SIZE,
}
"""Number -> the settings that accept it. Weights and rates may have any size: a diverging trial is a result."""


def _with(name: str, given: float) -> list[Any]:
    """The field's value replaced by `given`; for a tuple, each of its elements in turn."""
    value = NUMBERS[name]
    if not isinstance(value, tuple):
        return [given]
    return [(*value[:i], given, *value[i + 1 :]) for i in range(len(value))]


def _refusal(name: str, value: Any) -> str:
    try:
        override(SAMPLE, {name: value})
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("given", [-1, 0, 10**30, math.nan, math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_range_are_refused(name: str, given: float) -> None:
    """With an error that names the setting. One end of a range may be accepted where the other is refused."""
    refusals = [_refusal(name, value) for value in _with(name, given)]
    assert all(refusal.startswith(f"{name}=") and "\n" not in refusal for refusal in refusals if refusal)
    on_purpose = math.isfinite(given) and name in ON_PURPOSE[int(given)]
    assert ("" in refusals) == on_purpose


@pytest.mark.parametrize("given", [math.nan, math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_sections_refuse_nonfinite_numbers_without_override(name: str, given: float) -> None:
    """Presets build sections without `override`."""
    *path, field = name.split(".")
    section: Any = functools.reduce(getattr, path, SAMPLE)
    for value in _with(name, given):
        with pytest.raises(InputError, match=f"^{name}="):
            dataclasses.replace(section, **{field: value})


def test_finished_trial_needs_no_steps() -> None:
    settings = override(SAMPLE, {"training.max_steps": 0, "checkpoint": "results/best"})
    assert (settings.training.max_steps, settings.training.report_every) == (0, 1)


@pytest.mark.parametrize("name", METHODS)
def test_registered_method_exists_with_its_sections(name: str) -> None:
    fields = {item.name: item for item in dataclasses.fields(TrialSettings)}
    sections = {key for key, item in fields.items() if dataclasses.is_dataclass(item.default_factory)}
    assert METHODS[name].sections <= sections
    assert METHODS[name].latents in get_args(LatentKind)
    found = method_class(name)
    assert issubclass(found, Method) and not found.__abstractmethods__
    assert found.columns(override(SAMPLE, {"method": name})) and found.phases


def test_every_section_is_read_by_some_method() -> None:
    sections = {item.name for item in dataclasses.fields(TrialSettings)} - {"method", "checkpoint"}
    assert frozenset().union(*(entry.sections for entry in METHODS.values())) == sections


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("sinsr", "pairs.scale", 2),
        ("resshift", "network.image_size", 8),
        ("pixel_diffusion", "pixel.train_timesteps", 500),
    ],
)
def test_sections_must_agree_if_a_method_reads_both(method: str, name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name}={value}: expected|{name}={value}$"):
        override(SAMPLE, {"method": method, name: value})
    assert flatten(override(SAMPLE, {"method": "latent_diffusion", name: value}))[name] == value


def test_unknown_name_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(InputError, match=r"sinsr.groundtruth: no such setting; nearest: sinsr.ground_truth"):
        override(SAMPLE, {"sinsr.groundtruth": 1.0})
    with pytest.raises(InputError, match=r"zzz: no such setting; nearest: .*data\.\*.*, method, .*training\.\*"):
        override(SAMPLE, {"zzz": 1})
    with pytest.raises(InputError, match=r"training: no such setting"):
        override(SAMPLE, {"training": TrainingSettings()})  # a whole section would bypass the checks


def test_dependent_fields_change_together_or_not_at_all() -> None:
    together = {"pairs__image_size": 128, "network__image_size": 32, "network__attention_resolutions": (16,)}
    assert list(changed(**together).values()) == list(together.values())
    before = flatten(SAMPLE)
    with pytest.raises(InputError):
        changed(pairs__image_size=128, training__max_steps=7)
    assert flatten(SAMPLE) == before


def test_override_returns_a_copy() -> None:
    settings = override(SAMPLE, {"sinsr.inversion": 0.5})
    assert (settings.sinsr.inversion, SAMPLE.sinsr.inversion) == (0.5, 1.0)
    assert settings.training == SAMPLE.training
    assert override(SAMPLE, {}) == SAMPLE


def test_optional_fields_accept_none_and_their_type() -> None:
    @dataclass(frozen=True)
    class Section:
        limit: int | None = 3

    assert override(Section(), {"limit": "none"}).limit is None
    assert override(Section(), {"limit": None}).limit is None
    assert override(Section(), {"limit": "5"}).limit == 5


@pytest.mark.parametrize(("max_steps", "reports"), [(360, 6), (100, 6), (10, 4), (7, 4), (1, 50), (13, 6), (5, 5)])
def test_reports_are_at_most_the_requested_number(max_steps: int, reports: int) -> None:
    every = TrainingSettings(max_steps=max_steps, batch_size=1, reports=reports).report_every
    assert 1 <= every <= max_steps
    assert -(-max_steps // every) <= reports


def test_settings_are_read_without_torch() -> None:
    """`--help`, `--list` and input errors must not wait for it."""
    code = (
        "import sys; from trainables.settings.presets import preset; from trainables.settings import override;"
        "import search_spaces; [search_spaces.load(name) for name in search_spaces.names()];"
        "override(preset('sample').trial, {'sinsr.inversion': 0.1});"
        "print([name for name in ('torch', 'ray', 'optuna', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_default_network_has_the_size_of_the_released_one() -> None:
    shapes = json.loads((EXPECTED / "official_shapes.json").read_text())["UNetModelSwin"]
    derived = ("relative_position_index", "attn_mask")
    released = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(derived))
    assert count_parameters(preset("sinsr-stage2").trial.network) == released
