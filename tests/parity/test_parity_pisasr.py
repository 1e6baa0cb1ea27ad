"""Restoring with two scaled LoRAs against PiSA-SR's own functions, for equal weights and latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.curves import normal
from tests.helpers.loop import CPU
from tests.helpers.parity import relative_error
from tests.helpers.paths import EXPECTED
from tests.helpers.trainings import PISASR, osediff, start_lora
from trainables.methods.build import build_method
from trainables.settings import TrialSettings, override

# Origin of the file: expected/README.md.
DATA = np.load(EXPECTED / "pisasr.npz")


@pytest.fixture(scope="module")
def method(tiny: TrialSettings, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = override(tiny, osediff(tmp_path_factory.mktemp("base")) | PISASR)
    made = build_method(settings, CPU)
    start_lora(made)
    made.networks.eval()
    return made


@torch.no_grad()
def restored(method: Any, pixel: float, semantic: float) -> Tensor:
    """Latents, taken from the decoder's input."""
    scales = {"one_step.pixel_scale": pixel, "one_step.semantic_scale": semantic}
    method.settings = override(method.settings, scales)
    found: list[Tensor] = []
    decoder = method.autoencoder.decode
    method.autoencoder.decode = lambda latents: found.append(latents) or decoder(latents)
    method.restore({"latent_degraded": normal("latent_degraded", 0, 2, 4, 8, 12)})
    method.autoencoder.decode = decoder
    return found[0]


def test_scaled_loras(method: Any) -> None:
    for (pixel, semantic), expected in zip(DATA["scales"].tolist(), DATA["restored"], strict=True):
        assert relative_error(restored(method, pixel, semantic), torch.from_numpy(expected)) < 1e-5


def test_merged_loras_are_both_scales_one(method: Any) -> None:
    """The default of the public code merges both LoRAs and runs once."""
    assert relative_error(restored(method, 1.0, 1.0), torch.from_numpy(DATA["default"])) < 1e-5
