"""The estimate of a GPU's memory, against the same count in a step that is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.loop import CPU, VARIANTS, VariantOf
from trainables.methods.build import build_method
from trainables.settings import reason_unread
from trainables.training.memory_estimate import LiveBytes, training_bytes

pytestmark = pytest.mark.filterwarnings("ignore:.*which is a no-op")  # weights cannot be loaded on that device
META = torch.device("meta")


def test_live_tensors_are_counted_until_they_are_freed() -> None:
    before = torch.zeros(100)
    with LiveBytes([before]) as live:
        made = before + 1
        view = made[:10]
        before.add_(1)
        assert (live.now, live.peak) == (400, 400)
        other = made * 2
        del made
        assert live.now == 800  # the view still holds it
        del view
        assert (live.now, live.peak) == (400, 800)
        del other
    assert live.now == 0


@pytest.mark.parametrize(
    ("variant", "precision"), [*((variant, "fp32") for variant in VARIANTS), ("sinsr", "bf16"), ("one_step", "bf16")]
)
def test_estimate_is_that_of_a_computed_step(variant: str, precision: str, variant_of: VariantOf) -> None:
    """Within 2 %: a CPU's attention keeps slightly more or less than a GPU's."""
    settings = variant_of(variant, {"training.precision": precision})
    expected = training_bytes(build_method(settings, CPU))
    assert training_bytes(build_method(settings, META)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("variant", ["sinsr", "pix2pix", "latent_diffusion"])
def test_options_that_save_memory_lower_the_estimate(variant: str, variant_of: VariantOf) -> None:
    def estimate(**changes: Any) -> int:
        named = {f"training.{name}": value for name, value in changes.items()}
        return training_bytes(build_method(variant_of(variant, named), META))

    plain = estimate(batch_size=4)
    assert estimate(batch_size=4, accumulate=4) < estimate(batch_size=4, accumulate=2) < plain
    assert estimate(batch_size=8) > plain
    if not reason_unread("training.gradient_checkpointing", variant_of(variant)):
        assert estimate(batch_size=4, gradient_checkpointing=True) < plain
