"""ResShift restores by its own sampler or by SinSR's; the choice changes no weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainables.data.batches import validation_batches
from trainables.data.prepared import Prepared
from trainables.data.stages.targets import Targets
from trainables.diffusion.noise import step_noise
from trainables.methods.build import build_method
from trainables.methods.resshift import ResShift
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset

CPU = torch.device("cpu")


@torch.no_grad()
def test_sampler(trial_of: Callable[[str], TrialSettings], prepared_for: Callable[[TrialSettings], Prepared]) -> None:
    """Ancestral steps add noise that the image's key determines; `parity/test_parity_resshift.py` has the sampler."""
    settings = trial_of("resshift")
    batch = next(validation_batches(prepared_for(settings), 2, CPU))
    restored = {}
    for sampler in ("ddim", "ancestral"):
        torch.manual_seed(0)  # for the initial weights
        method = build_method(override(settings, {"resshift.sampler": sampler}), CPU)
        assert isinstance(method, ResShift)
        restored[sampler] = method.restore(batch)
        assert torch.equal(method.restore(batch), restored[sampler])
    assert not torch.equal(restored["ddim"], restored["ancestral"])

    def predict_x0(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = method.networks["denoiser"](x, t, lq=batch["degraded"])
        return found

    y, noise, keys = batch["latent_degraded"], batch["noise"], batch["noise_key"]
    latent = method.diffusion.sample_ancestral(predict_x0, y, noise, step_noise(keys.tolist(), y))
    assert torch.equal(method.autoencoder.decode(latent) * 0.5 + 0.5, restored["ancestral"])
    # Each image by its own key, whatever its batch.
    second = method.restore({name: values[1:] for name, values in batch.items()})
    torch.testing.assert_close(second, restored["ancestral"][1:], rtol=1e-4, atol=1e-4)
    assert (method.restore({**batch, "noise_key": keys + 1}) - restored["ancestral"]).abs().max() > 1e-3


def test_weights_and_targets_do_not_depend_on_the_sampler(trial_of: Callable[[str], TrialSettings]) -> None:
    plain = trial_of("sinsr")
    other = override(plain, {"resshift.sampler": "ancestral"})
    assert ResShift.architecture(other) == ResShift.architecture(plain)
    assert Targets.key(other) == Targets.key(plain)


@pytest.mark.parametrize("name", ["resshift", "resshift-journal"])
def test_published_presets_use_the_published_sampler(name: str) -> None:
    assert preset(name).trial.resshift.sampler == "ancestral"
