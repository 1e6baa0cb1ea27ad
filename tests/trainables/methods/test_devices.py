"""A method computes on the device for which it was built, and a step never waits for that device.

The test machines have no GPU. PyTorch's "meta" device replaces it: its tensors have shapes and no values. Under
`FakeTensorMode` an operation on two devices raises, as on a GPU, and so does reading a number.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.helpers.loop import CPU, VARIANTS, VariantOf
from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepared import Prepared
from trainables.methods.build import build_method
from trainables.metrics import build_metrics
from trainables.settings import TrialSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*which is a no-op")  # weights cannot be loaded on that device

PreparedFor = Callable[[TrialSettings], Prepared]

AWAY = torch.device("meta")
READS_ITS_SCHEDULE = {"ccsr", "CCSR's objective"}
"""Truncated sampling reads numbers of the schedule, which is on the CPU; fake tensors have none there either."""


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[], FakeTensorMode]:
    real = torch.autocast

    def autocast(device: str, *arguments: Any, **named: Any) -> AbstractContextManager[Any]:
        return nullcontext() if device == AWAY.type else real(device, *arguments, **named)  # meta has no autocast

    monkeypatch.setattr("torch.autocast", autocast)
    return lambda: FakeTensorMode(allow_non_fake_inputs=True)


def sent(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of a validation batch's noise stay on the CPU, as in training."""
    return {name: values if name == "noise_key" else values.to(AWAY) for name, values in batch.items()}


def test_operation_on_two_devices_raises(away: Callable[[], FakeTensorMode]) -> None:
    here, there = torch.ones(3), torch.ones(3, device=AWAY)
    with away(), pytest.raises(RuntimeError, match="device"):
        here + there
    with away(), pytest.raises(DataDependentOutputException):
        there.sum().item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_stays_on_its_device(
    variant: str, variant_of: VariantOf, prepared_for: PreparedFor, away: Callable[[], FakeTensorMode]
) -> None:
    settings = variant_of(variant, {"perceptual.every": 1})
    method = build_method(settings, AWAY)
    batch = TrainingBatches(prepared_for(settings), settings, method.columns(settings), CPU)(0)
    for phase in method.phases:
        with away(), method.only(phase):
            terms = method.losses(phase, sent(batch), 0).values()
            assert {term.value.device for term in terms} == {AWAY}
            torch.stack([term.value * term.weight for term in terms]).sum().backward()
    assert {p.grad.device for p in method.networks.parameters() if p.grad is not None} == {AWAY}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in READS_ITS_SCHEDULE])
def test_restoring_stays_on_its_device(
    variant: str, variant_of: VariantOf, prepared_for: PreparedFor, away: Callable[[], FakeTensorMode]
) -> None:
    settings = variant_of(variant)
    method = build_method(settings, AWAY)
    method.networks.eval()
    batch = sent(next(validation_batches(prepared_for(settings), 2, CPU)))
    with away(), torch.no_grad():
        restored = method.restore(batch)
    assert restored.device == AWAY and restored.shape == batch["target"].shape


def test_metrics_stay_on_their_device(away: Callable[[], FakeTensorMode], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("val/psnr", "val/psnr_y", "val/ssim", "val/st_lpips")
    metrics, images = build_metrics(names, AWAY), torch.rand(2, 3, 64, 64).to(AWAY)
    monkeypatch.setattr(metrics, "_check", lambda *of: None)  # it reads the range of the images, once per batch
    with away():
        measured = metrics(images, images)
    assert {name: value.device for name, value in measured.items()} == dict.fromkeys(names, AWAY)
