"""The losses of the methods with Gaussian diffusion, against the terms written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainables.methods.build import build_method
from trainables.methods.pixel_diffusion import PixelDiffusion
from trainables.settings import TrialSettings, override

GAMMA = 5.0


@pytest.mark.parametrize(
    ("kind", "weighted", "weight"),
    [
        # Weights of the output's errors: min(SNR, gamma) for x_0, divided by SNR for the noise, by SNR + 1 for v.
        ("epsilon", "noise", lambda snr: snr.clamp(max=GAMMA) / snr),
        ("v_prediction", "velocity", lambda snr: snr.clamp(max=GAMMA) / (snr + 1)),
        ("sample", "reconstruction", lambda snr: snr.clamp(max=GAMMA)),
    ],
)
def test_min_snr_weighs_the_term_of_the_output_alone(
    kind: str, weighted: str, weight: Callable[[torch.Tensor], torch.Tensor], trial_of: Callable[[str], TrialSettings]
) -> None:
    settings = override(trial_of("pixel_diffusion"), {"diffusion.prediction_type": kind, "perceptual.weight": 0.0})
    torch.manual_seed(0)
    plain = build_method(settings, torch.device("cpu"))
    snr_weighted = build_method(override(settings, {"diffusion.min_snr": GAMMA}), torch.device("cpu"))
    assert isinstance(plain, PixelDiffusion)
    snr_weighted.networks.load_state_dict(plain.networks.state_dict())
    side, scale = settings.pairs.image_size, settings.pairs.scale
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shares = torch.tensor([0.01, 0.4, 0.9])  # SNR above gamma, near 1, and far below
    batch = {
        "target": images,
        "degraded": images[..., ::scale, ::scale],
        "fresh_noise": torch.randn(images.shape, generator=torch.Generator().manual_seed(2)),
        "uniform": shares,
    }
    (phase,), diffusion = plain.phases, plain.diffusion
    with torch.no_grad():
        without, with_weights = (
            {name: float(term.value) for name, term in method.losses(phase, batch, 0).items()}
            for method in (plain, snr_weighted)
        )
        t = (shares * diffusion.max_timestep).long()
        x_t = diffusion.add_noise(images, t, batch["fresh_noise"])
        output = plain.denoiser(batch)(x_t, t)
    target = {"epsilon": batch["fresh_noise"], "sample": images}.get(
        kind, diffusion.target(images, batch["fresh_noise"], t)
    )
    errors = (output - target).abs() if kind == "sample" else (output - target).square()
    abar = diffusion.alphas_cumprod[t]
    expected = (weight(abar / (1 - abar)) * errors.flatten(1).mean(dim=1)).mean()
    assert with_weights[weighted] == pytest.approx(float(expected), rel=1e-4)  # float32 sums
    assert with_weights[weighted] != pytest.approx(without[weighted], rel=0.01)
    others = without.keys() - {weighted}
    assert {name: with_weights[name] for name in others} == pytest.approx({name: without[name] for name in others})
