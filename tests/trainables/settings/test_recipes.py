"""Presets train with the numbers of published trainings, and the schedules they use follow the public formulas."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn, optim

from tests.helpers.paths import EXPECTED
from trainables.settings import TrainingSettings, flatten, override
from trainables.settings.presets import preset
from trainables.training.optimisation import learning_rate_factor, make_optimiser

with (EXPECTED / "recipes.csv").open(newline="") as file:
    ROWS = list(csv.DictReader(file))
DOCS = EXPECTED.parents[1] / "docs" / "recipes.md"


@pytest.mark.parametrize("name", sorted({(row["preset"], row["method"]) for row in ROWS}))
def test_preset_has_the_published_numbers(name: tuple[str, str]) -> None:
    """The file with the numbers says where each was read."""
    chosen, method = preset(name[0]), name[1]
    trial = override(chosen.trial, {"method": method, **chosen.methods.get(method, {})})
    for row in ROWS:
        if (row["preset"], row["method"]) == name:
            as_published = override(trial, {row["setting"]: row["value"]})
            assert flatten(as_published)[row["setting"]] == flatten(trial)[row["setting"]], row


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
