"""StableSR's first stage: a time-aware encoder modulates a UNet that is not trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import finish
from tests.helpers.bases import DIM, tiny_unet
from trainables.common.errors import InputError
from trainables.data.batches import validation_batches
from trainables.data.prepared import Prepared
from trainables.methods.build import build_method, method_class
from trainables.methods.shared.first_stage import FirstStage
from trainables.networks.time_aware import ModulatedUNet, TimeAwareConditioning
from trainables.settings import TrialSettings, override

CPU = torch.device("cpu")
TrialOf = Callable[[str], TrialSettings]
PreparedFor = Callable[[TrialSettings], Prepared]


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps, the prompt and degraded latents."""
    return torch.randn(2, 4, 8, 12), torch.tensor([10, 700]), torch.randn(1, 2, DIM), torch.randn(2, 4, 8, 12)


def conditioned(normalised: bool = False, recomputed: bool = False) -> tuple[ModulatedUNet, TimeAwareConditioning]:
    torch.manual_seed(3)
    unet = tiny_unet().requires_grad_(False)
    conditioning = TimeAwareConditioning(unet, 8, 1, 4, normalised=normalised)
    if recomputed:
        unet.enable_gradient_checkpointing()
        conditioning.encoder.enable_gradient_checkpointing()
    return ModulatedUNet(unet, conditioning.transforms), conditioning


def randomise(conditioning: TimeAwareConditioning) -> None:
    """Zeros would hide the conditioning."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in conditioning.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def test_unet_is_changed_only_by_trained_transforms(inputs: tuple[Tensor, ...]) -> None:
    """Without normalisation they start as the identity. The UNet alone stays as it was, also after a pass."""
    x, t, prompt, degraded = inputs
    modulated, conditioning = conditioned()
    plain = modulated.unet(x, t, prompt.expand(2, -1, -1)).sample
    assert torch.equal(modulated(x, t, prompt, conditioning(degraded, t)), plain)
    randomise(conditioning)
    changed = modulated(x, t, prompt, conditioning(degraded, t))
    assert (changed - plain).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert torch.equal(modulated.unet(x, t, prompt.expand(2, -1, -1)).sample, plain)


@torch.no_grad()
def test_features_depend_on_image_and_timestep(inputs: tuple[Tensor, ...]) -> None:
    _, conditioning = conditioned()
    randomise(conditioning)
    degraded, t = inputs[3], torch.tensor([10, 10])
    features, later, other = conditioning(degraded, t), conditioning(degraded, t + 500), conditioning(-degraded, t)
    assert [tuple(feature.shape) for feature in features] == [(2, 8, 8, 12), (2, 8, 4, 6)]
    for level, feature in enumerate(features):
        assert (later[level] - feature).abs().max() > 0.01 and (other[level] - feature).abs().max() > 0.01


@pytest.mark.parametrize("normalised", [False, True])
def test_recomputation_uses_the_features_of_its_own_pass(normalised: bool, inputs: tuple[Tensor, ...]) -> None:
    """With two passes before the backward one, as the objective of CCSR has."""
    x, t, prompt, degraded = inputs
    gradients = []
    for recomputed in (False, True):
        modulated, conditioning = conditioned(normalised, recomputed)
        randomise(conditioning)
        passes = [modulated(x, t, prompt, conditioning(sign * degraded, t)).square().mean() for sign in (1, -1)]
        torch.stack(passes).sum().backward()
        gradients.append([parameter.grad for parameter in conditioning.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None and again is not None
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_colours_are_those_of_the_degraded_image(trial_of: TrialOf, prepared_for: PreparedFor) -> None:
    settings = trial_of("stablesr")
    batch = next(validation_batches(prepared_for(settings), 2, CPU))
    with torch.no_grad():
        restored = build_method(settings, CPU).restore(batch)
        uncorrected = build_method(override(settings, {"stablesr.colour": "none"}), CPU).restore(batch)
    expected = (batch["degraded"] * 0.5 + 0.5).mean(dim=(2, 3))
    torch.testing.assert_close(restored.mean(dim=(2, 3)), expected, rtol=0, atol=0.02)
    assert (uncorrected.mean(dim=(2, 3)) - expected).abs().max() > 0.02


@torch.no_grad()
def test_sampler_is_chosen_when_restoring(trial_of: TrialOf, prepared_for: PreparedFor) -> None:
    """Ancestral steps add noise, which depends on the image alone."""
    settings = trial_of("stablesr")
    batch = next(validation_batches(prepared_for(settings), 2, CPU))
    restored = []
    for sampler in ("ddim", "ancestral", "ancestral"):
        torch.manual_seed(0)  # for the initial weights
        restored.append(build_method(override(settings, {"diffusion.sampler": sampler}), CPU).restore(batch))
    plain, ancestral, again = restored
    assert torch.equal(ancestral, again) and not torch.equal(plain, ancestral)


def test_both_stages_of_stablesr(trial_of: TrialOf, prepared_for: PreparedFor, tmp_path: Path) -> None:
    """The feature wrapping trains on latents that a finished trial of this method restores."""
    settings = override(trial_of("stablesr"), {"training.max_steps": 1, "training.warmup_steps": 0})
    finish(settings, prepared_for(settings), tmp_path)
    second = override(trial_of("stablesr_cfw"), {"first_stage.weights": str(tmp_path)})
    method_class("stablesr_cfw").check(second)
    batch = next(validation_batches(prepared_for(settings), 2, CPU))
    with torch.no_grad():
        expected = build_method(override(settings, {"checkpoint": str(tmp_path)}), CPU).sample(batch)  # type: ignore[attr-defined]
        found = FirstStage(second, CPU)(batch["latent_degraded"], batch["noise"], batch["noise_key"].tolist())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_width_must_fit_the_base(trial_of: TrialOf) -> None:
    settings = override(trial_of("stablesr"), {"stablesr.width": 10})
    with pytest.raises(
        InputError, match=r"^stablesr\.width=10: expected a multiple of 4 heads and of the 4 norm groups"
    ):
        method_class("stablesr").check(settings)
