"""What published trainings need of the loop: several updates per step, a constant average, raw weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.loop import METRICS, run
from trainables.common.errors import InputError
from trainables.data.prepared import Prepared
from trainables.settings import TrialSettings, override
from trainables.training.ema import ExponentialMovingAverage
from trainables.training.loop import Trainer, World


def weights_after(settings: TrialSettings, prepared: Prepared) -> dict[str, torch.Tensor]:
    trainer = Trainer(settings, prepared, METRICS, World())
    trainer.train_until(settings.training.max_steps)
    return {name: tensor.clone() for name, tensor in trainer.method.networks.state_dict().items()}


def test_updates_of_a_step_are_steps_of_a_smaller_batch(
    trial_of: Callable[[str], TrialSettings], prepared_for: Callable[[TrialSettings], Prepared]
) -> None:
    """The batch has the same rows in the same order, and Pix2Pix without dropout draws nothing."""
    gan = override(
        trial_of("pix2pix"),
        {"pix2pix.dropout": False, "training.warmup_steps": 0, "training.schedule": "constant", "training.seed": 3},
    )
    batch, images = gan.training.batch_size, gan.training.batch_size * 2
    at_once = override(gan, {"training.updates": batch, "training.max_steps": 2})
    one_by_one = override(gan, {"training.batch_size": 1, "training.max_steps": images})
    found, expected = (weights_after(each, prepared_for(each)) for each in (at_once, one_by_one))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_raw_weights_are_validated_without_an_average() -> None:
    """With a decay of 0, which keeps no copy."""
    network = nn.Linear(3, 2)
    raw = ExponentialMovingAverage(network, 0.0)
    with torch.no_grad():
        network.weight.fill_(2.0)
    raw.update()
    with raw.applied():
        assert torch.equal(network.weight, torch.full((2, 3), 2.0))
    assert raw.state_dict()["averages"] == {}


def test_constant_average_is_the_official_one() -> None:
    """`update_ema_model` of the trainers of ResShift and SinSR: rate x average + (1 - rate) x weight."""
    rng, network = np.random.default_rng(0), nn.Linear(3, 2)
    averages = ExponentialMovingAverage(network, 0.9, warmup=False)
    expected = network.weight.detach().double().numpy().copy()
    for _ in range(8):
        current = rng.standard_normal((2, 3))
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(current))
        averages.update()
        expected = 0.9 * expected + 0.1 * network.weight.detach().double().numpy()
    with averages.applied():
        np.testing.assert_allclose(network.weight.detach(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_optimisers_train_and_continue(
    name: str, small: TrialSettings, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A trial that is interrupted after three of six steps ends with the weights of one that was not."""
    settings = override(small, {"training.optimiser": name, "training.updates": 2})
    folder = tmp_path_factory.mktemp(name)
    whole = run(settings, prepared, folder)
    again = run(settings, prepared, checkpoint=folder / "3")
    assert again.reports[-1].metrics["val/psnr"] == whole.reports[-1].metrics["val/psnr"]


def test_a_batch_must_be_divisible_by_updates_and_parts(small: TrialSettings) -> None:
    with pytest.raises(InputError, match=r"^training.batch_size=4: expected a multiple of 8, training.updates x"):
        override(small, {"training.updates": 4, "training.accumulate": 2})
