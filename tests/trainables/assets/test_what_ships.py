"""The shipped networks restore: better than doing nothing, on photographs of the sample that trained none of them.

Few crops, so that the tests are fast. `python -m trainables.assets measure` and MODEL_CARD.md have the numbers of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.assets.held_out import held_out_crops, mean_psnr
from trainables.assets.teacher import held_out_inputs, teacher_settings
from trainables.images.pairs import Pairs
from trainables.images.sources.photographs import load_photographs
from trainables.images.tensors import upsample
from trainables.metrics.st_lpips import STLPIPS
from trainables.networks.autoencoder import decode, encode, load_vq_f4
from trainables.pretrained.resshift import build_diffusion, load_teacher
from trainables.pretrained.shipped import ASSETS, SHIPPED_AUTOENCODER
from trainables.restorer import Restorer, restoration_settings
from trainables.settings import SAMPLE
from trainables.settings.presets import preset


def _distance(restored: Tensor, target: Tensor) -> float:
    """Mean ST-LPIPS; (N, 3, H, W) in [-1, 1]."""
    with torch.no_grad():
        return float(STLPIPS("alex")(restored.clamp(-1, 1), target).mean())


def _images(pixels: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) each -> (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def test_teacher_is_better_than_bicubic() -> None:
    """On 204 crops 0.70 of bicubic's distance in one step, 0.64 in 15; 0.04 and 0.63 dB behind. These are 17 crops."""
    settings, targets = teacher_settings(SHIPPED_AUTOENCODER), held_out_crops(1)
    inputs = held_out_inputs(targets, settings)
    bicubic = upsample(inputs, settings.pairs.scale)
    autoencoder, teacher = load_vq_f4(SHIPPED_AUTOENCODER), load_teacher(preset("sample").trial)
    start = encode(autoencoder, bicubic)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    diffusion = build_diffusion(settings.resshift)
    for restore, share, behind in ((diffusion.predict_from_prior, 0.75, 0.3), (diffusion.sample_ddim, 0.7, 1.0)):
        restored = decode(autoencoder, restore(lambda x, t: teacher(x, t, lq=inputs), start, noise))
        assert _distance(restored, targets) < share * _distance(bicubic, targets)
        assert mean_psnr(restored, targets) > mean_psnr(bicubic, targets) - behind


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("latent_diffusion_sample", [("diffusion.inference_steps", 4)]),
        ("one_step_sample", []),
        ("stablesr_cfw_sample", []),
        ("ccsr_sample", []),
    ],
)
def test_finished_trials_are_better_than_their_input(name: str, changes: list[tuple[str, Any]]) -> None:
    """0.42, 0.27, 0.29 and 0.31 of the input's distance on 48 crops; 0.8 leaves room for every twelfth of them."""
    settings = preset("sample-print").trial.pairs
    pairs = Pairs(load_photographs(SAMPLE, "validation"), settings, "validation", 0)[::12]
    restorer = Restorer(restoration_settings(ASSETS / name, changes), torch.device("cpu"))
    restored = _images([restorer(pair.degraded, (0, number)) for number, pair in enumerate(pairs)])
    targets, inputs = _images([pair.target for pair in pairs]), _images([pair.degraded for pair in pairs])
    assert _distance(restored, targets) < 0.8 * _distance(inputs, targets)
