"""Presets train with the numbers of published trainings, and the schedules they use follow the public formulas."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn, optim

from tests.helpers.paths import EXPECTED
from trainables.settings import TrainingSettings, TrialSettings, flatten, override
from trainables.settings.effects import is_read, reason_unread
from trainables.settings.presets import PRESETS, preset
from trainables.training.optimisation import learning_rate_factor, make_optimiser

with (EXPECTED / "recipes.csv").open(newline="") as file:
    ROWS = list(csv.DictReader(file))
DOCS = EXPECTED.parents[1] / "docs" / "recipes.md"
PUBLISHED = [name for name in PRESETS if name not in ("sample", "sample-print", "print-to-camera")]
NUMBERS = (
    *("max_steps", "batch_size", "optimiser", "learning_rate", "schedule", "warmup_steps", "weight_decay"),
    *("clip_gradient", "ema_decay", "precision"),
)
NOT_PUBLISHED = {("sinsr-stage1", "training.warmup_steps")}  # the reproduction names none for its short training
DECIDE = (
    *("base.weights", "base.padded_prompt"),
    *("diffusion.prediction_type", "perceptual.weight", "lora.rank", "one_step.timestep"),
    *("resshift.steps", "resshift.power", "resshift.kappa", "resshift.min_noise_level", "resshift.etas_end"),
    *("resshift_loss.mse", "resshift_loss.lpips", "sinsr.ground_truth", "ccsr.t_max", "stablesr.modulation"),
)
"""What decides what is trained, besides the optimiser, where the method reads it."""
OF_DEGRADATIONS = (
    *("pairs.image_size", "pairs.scale", "pairs.crop"),
    *(
        f"pairs.degradation.{name}{order}"
        for order in ("", "2")
        for name in (
            *("kernel_prob", "sinc_prob", "blur_sigma", "betag_range", "betap_range", "resize_prob", "resize_range"),
            *("gaussian_noise_prob", "noise_range", "poisson_scale_range", "gray_noise_prob", "jpeg_range"),
            *("smallest_blur_kernel", "blur_kernel_size"),
        )
    ),
    *(f"pairs.degradation.{name}" for name in ("second_order_prob", "second_blur_prob", "final_sinc_prob")),
)


def trial_of(name: str, method: str = "") -> TrialSettings:
    chosen = preset(name)
    method = method or chosen.trial.method
    return override(chosen.trial, {"method": method, **chosen.methods.get(method, {})})


@pytest.mark.parametrize("name", sorted({(row["preset"], row["method"]) for row in ROWS}))
def test_preset_has_the_published_numbers(name: tuple[str, str]) -> None:
    """The file with the numbers says where each was read."""
    trial = trial_of(*name)
    for row in ROWS:
        if (row["preset"], row["method"]) == name:
            if row["setting"] == "workers":  # processes per trial: a default of the preset, not a setting of its trial
                assert preset(name[0]).workers == int(row["value"])
                continue
            as_published = override(trial, {row["setting"]: row["value"]})
            assert flatten(as_published)[row["setting"]] == flatten(trial)[row["setting"]], row


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_number_of_a_published_training_is_left_out(name: str) -> None:
    """Every preset that follows a paper has a row for each of these settings that its method reads."""
    trial = trial_of(name)
    needed = [*DECIDE, *(f"training.{number}" for number in NUMBERS)]
    if trial.pairs.simulator == "super_resolution":
        needed += OF_DEGRADATIONS
    listed = {row["setting"] for row in ROWS if (row["preset"], row["method"]) == (name, trial.method)}
    read = {
        setting
        for setting in needed
        if is_read(setting, (trial.method,))
        and not reason_unread(setting, trial)
        and (name, setting) not in NOT_PUBLISHED
    }
    assert not sorted(read - listed)


@pytest.mark.parametrize("method", ["pix2pix", "stablesr_cfw", "ccsr", "one_step"])
def test_no_optimiser_of_print_to_camera_is_left_out(method: str) -> None:
    """For methods that train as published there; the others only take their learning rate from a paper."""
    listed = {row["setting"] for row in ROWS if (row["preset"], row["method"]) == ("print-to-camera", method)}
    lengths = () if method == "ccsr" else ("max_steps", "batch_size")  # those of the preset
    needed = {f"training.{number}" for number in NUMBERS if number not in lengths} | {"perceptual.weight"}
    assert not sorted(needed - listed)


def test_every_source_is_in_the_table_of_recipes() -> None:
    text = DOCS.read_text()
    assert not sorted({row["repository"] for row in ROWS if row["repository"] not in text})
    assert not sorted({row["file"] for row in ROWS if f"`{row['file']}`" not in text})


def factors(**settings: object) -> list[float]:
    chosen = TrainingSettings(batch_size=1, **settings)  # type: ignore[arg-type]  # names and values of its fields
    return [learning_rate_factor(chosen, step) for step in range(chosen.max_steps)]


def test_exponential_decay_is_marigolds() -> None:
    """`IterExponential` of its `src/util/lr_scheduler.py`, but for the warm-up, which starts one step later there."""
    found = factors(max_steps=30, warmup_steps=5, schedule="exponential", decay_end=25 / 30, final_rate=0.01)
    assert found[5:25] == pytest.approx([0.01 ** ((step - 5) / 20) for step in range(5, 25)])
    assert found[25:] == pytest.approx([0.01] * 5)


def test_cosine_with_a_floor_is_pytorchs() -> None:
    parameter = nn.Linear(1, 1)
    optimiser = optim.SGD(parameter.parameters(), lr=5e-5)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=40, eta_min=2e-5)
    expected = []
    for _ in range(40):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    found = factors(max_steps=50, warmup_steps=10, schedule="cosine", final_rate=0.4)[10:]
    assert [5e-5 * factor for factor in found] == pytest.approx(expected)


def test_linear_decay_covers_the_second_half() -> None:
    found = factors(max_steps=10, warmup_steps=0, schedule="linear", decay_start=0.5)
    assert found == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_a_schedule_can_be_cut() -> None:
    """Warm-up, constant, short decay: a shorter run is the start of a longer one, until its decay."""
    cut = {"warmup_steps": 5, "schedule": "cosine", "decay_start": 0.9}
    shorter, longer = (factors(max_steps=steps, **cut) for steps in (100, 500))
    assert shorter[:91] == longer[:91] and shorter[95] < 1 == longer[95]


def test_adafactor_keeps_rows_and_columns() -> None:
    network = nn.Linear(64, 32, bias=False)
    optimiser = make_optimiser(TrainingSettings(optimiser="adafactor"), network.parameters())
    network.weight.grad = network.weight.detach().clone()
    optimiser.step()
    held = [value.numel() for value in optimiser.state[network.weight].values()]
    assert 0 < sum(held) < 2 * (64 + 32)


@pytest.mark.parametrize("rate", [0.5, 50.0])
def test_adafactor_steps_with_at_most_one_over_the_root_of_the_update(rate: float) -> None:
    """A constant gradient makes the step the rate times the weights' root mean square, here 1 before the step."""
    weight = nn.Parameter(torch.ones(4, 4))
    optimiser = make_optimiser(TrainingSettings(optimiser="adafactor", learning_rate=rate), [weight])
    for update in range(1, 10):
        with torch.no_grad():
            weight.fill_(1.0)
        weight.grad = torch.ones_like(weight)
        optimiser.step()
        expected = torch.full_like(weight, 1 - min(rate, update**-0.5))
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-5)  # float32 near 1
