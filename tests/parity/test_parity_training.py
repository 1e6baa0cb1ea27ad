"""Thirty optimiser steps of a method in our loop against the public trainer, with equal weights, batches and noise.

The public code's own step ran: its losses, its optimiser, its schedule and its average. Ours is the real `Trainer` with
other batches. What both sides can have is equal here; docs/recipes.md names the rest.
"""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.curves import STEPS
from tests.helpers.paths import EXPECTED
from tests.helpers.trainings import CURVES, TRAINING
from trainables.data.prepared import Prepared
from trainables.methods.method import Method
from trainables.pretrained.prompts import Prompts
from trainables.settings import TrialSettings, override
from trainables.training.ema import ExponentialMovingAverage
from trainables.training.loop import Trainer, World

LIMIT = 1e-4
AVERAGED = "averaged"
"""In place of a step: the losses of the averaged weights on the first batch, after the last step."""

# Origin of the file: expected/README.md.
with (EXPECTED / "training_curves.csv").open(newline="") as file:
    ROWS = list(csv.DictReader(file))


class NoFirstStage:
    """Training reads prepared latents; only validation needs the first stage."""

    def __init__(self, *_: Any) -> None:
        self.method = SimpleNamespace(size_multiple=8)


def widen(method: Method) -> None:
    """To float64, but for the autoencoder, which always computes in float32."""
    for name, part in vars(method).items():
        if isinstance(part, Prompts):
            setattr(method, name, Prompts(part.positive.double(), part.negative.double(), part.empty.double()))
        elif isinstance(part, nn.Module) and name != "autoencoder":
            part.double()


def losses_of(trainer: Trainer) -> dict[tuple[str, str], float]:
    """(step, term) -> loss, of a training to its end."""
    trainer.train_until(STEPS)
    return {
        (str(step), tag.removeprefix("loss/")): value
        for step, terms in trainer.log.take()
        for tag, value in terms.items()
        if tag.startswith("loss/")
    }


@pytest.mark.slow  # each trains for seconds; together they take a minute
@pytest.mark.parametrize("name", sorted(CURVES))
def test_losses_of_thirty_steps(
    name: str, tiny: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.methods.shared.decoder.FirstStage", NoFirstStage)
    curve = CURVES[name]
    settings = override(tiny, TRAINING | curve.settings(tmp_path))
    trainer = Trainer(settings, Prepared({}, {}, (0, 0, 0), (0, 0, 0)), (), World())
    curve.start(trainer.method)
    # In float64, because Adam makes whole steps of rounding errors, which depend on the processor; and where a
    # quantiser follows the network, they choose another code.
    widen(trainer.method)
    average = settings.training.ema_decay, settings.training.ema_warmup
    trainer.ema = ExponentialMovingAverage(trainer.method.networks, *average)  # of the weights set above

    def batch(step: int) -> dict[str, Tensor]:
        return {name: values.double() for name, values in curve.batch(trainer.method, step).items()}

    trainer.batches = batch  # type: ignore[assignment]
    found = losses_of(trainer)
    if settings.training.ema_decay:
        with trainer.ema.applied(), torch.no_grad():
            (phase,) = trainer.method.phases
            terms = trainer.method.losses(phase, batch(0), STEPS)
        found |= {(AVERAGED, term): float(loss.value) for term, loss in terms.items()}
    published = curve.expected or name
    expected = {(row["step"], row["term"]): float(row["loss"]) for row in ROWS if row["training"] == published}
    assert expected and found.keys() >= expected.keys()
    for term in sorted({term for _, term in expected}):
        values = {key: value for key, value in expected.items() if key[1] == term}
        # The adversarial loss changes its sign, so its size is that of the whole curve.
        size = sum(map(abs, values.values())) / len(values)
        errors = {key: abs(found[key] - value) / max(abs(value), size) for key, value in values.items()}
        worst = max(errors, key=lambda key: errors[key])
        print(f"{name} {term}: {errors[worst]:.1e} at {worst[0]}")
        assert errors[worst] < LIMIT, (term, worst)
