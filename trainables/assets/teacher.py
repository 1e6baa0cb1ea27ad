"""Trains the ResShift teacher that ships with the project, in the latents of the shipped autoencoder.

With ResShift's own objective (`ResShiftDiffusion.training_loss`), on the degradations of the preset `sample`. A trial's
loop differs in two points: here new pairs are made all the time, and images have several sizes and aspect ratios,
because the network also restores other sizes than 64 px.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor

from trainables.assets.crops import Crops, batch_pixels, to_images
from trainables.assets.held_out import held_out_crops, mean_psnr
from trainables.assets.training import Pool, Training
from trainables.images.degradations.degradation import degrade
from trainables.images.tensors import upsample
from trainables.metrics.st_lpips import STLPIPS
from trainables.networks.autoencoder import decode, encode
from trainables.networks.swin_unet import SwinUNet
from trainables.pretrained.resshift import build_diffusion, build_network
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset

COUNTS = (8, 5, 5, 4)  # pairs in a batch of each size of the pool
MARGIN = 5  # degraded pixels around a crop while it is degraded, on average


@dataclass(frozen=True)
class TeacherRecipe:
    """How the shipped teacher is trained.

    Attributes:
        pool: pairs kept of each shape. fresh: share of a batch that is newly made; the rest comes from the pool.
        first_step_share: share of a batch at the last timestep, where one-step restoration starts.
    """

    steps: int = 7_000
    learning_rate: float = 7e-4
    pool: int = 2048
    fresh: float = 0.125
    first_step_share: float = 0.15
    ema_decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class LatentPair:
    """Tensors of one pair: `degraded` (3, h, w) in [-1, 1]; `latent` and `latent_degraded` (8, h, w)."""

    degraded: Tensor
    latent: Tensor
    latent_degraded: Tensor


def teacher_settings(autoencoder: Path) -> TrialSettings:
    """The preset `sample` with that autoencoder."""
    changes = {"method": "resshift", "autoencoder.weights": str(autoencoder)}
    return override(preset("sample").trial, changes)


class PairSource:
    """Makes pairs from random crops."""

    def __init__(self, crops: Crops, autoencoder: VQModel, settings: TrialSettings, recipe: TeacherRecipe) -> None:
        self._crops, self._autoencoder, self._settings = crops, autoencoder, settings
        self._pool = Pool(COUNTS, recipe.pool, recipe.fresh, self._make)

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """degraded, latent, latent_degraded of one shape."""
        chosen = self._pool.batch(rng)
        return tuple(  # type: ignore[return-value]
            torch.stack([getattr(pair, name) for pair in chosen]) for name in ("degraded", "latent", "latent_degraded")
        )

    @torch.no_grad()
    def _make(self, count: int, height: int, width: int, rng: np.random.Generator) -> list[LatentPair]:
        scale, margin = self._settings.pairs.scale, MARGIN
        targets, inputs = [], []
        for _ in range(count):
            around = margin * scale
            target = self._crops.draw(height + 2 * around, width + 2 * around, rng)
            degraded = degrade(target, self._settings.pairs.degradation, rng, scale)
            # JPEG blocks fall differently on every crop.
            top, left = rng.integers(0, 2 * margin + 1, size=2)
            targets.append(target[top * scale :, left * scale :][:height, :width])
            inputs.append(degraded[top:, left:][: height // scale, : width // scale])
        images, degraded_images = to_images(targets), to_images(inputs)
        latents = encode(self._autoencoder, images)
        latents_degraded = encode(self._autoencoder, upsample(degraded_images, scale))
        return [LatentPair(*tensors) for tensors in zip(degraded_images, latents, latents_degraded, strict=True)]


def train_teacher(
    crops: Crops,
    autoencoder: VQModel,
    settings: TrialSettings,
    recipe: TeacherRecipe,
    folder: Path,
    log: Callable[[str], None] = print,
) -> SwinUNet:
    """Trains, or continues from `folder`; returns the averaged weights."""
    torch.manual_seed(recipe.seed)
    model = build_network(settings.network)
    diffusion = build_diffusion(settings.resshift)
    training, perceptual = Training(model, recipe), STLPIPS("alex")
    source = PairSource(crops, autoencoder, settings, recipe)
    held_out = held_out_crops(8)
    inputs = held_out_inputs(held_out, settings)
    truth = encode(autoencoder, held_out)
    start = encode(autoencoder, upsample(inputs, settings.pairs.scale))
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))

    def step(number: int) -> Mapping[str, float]:
        degraded, latent, latent_degraded = source.batch(training.begin(number))
        t = torch.randint(diffusion.steps, (len(latent),))
        t[torch.rand(len(t)) < recipe.first_step_share] = diffusion.last
        losses = diffusion.training_loss(
            lambda x, t: model(x, t, lq=degraded), latent, latent_degraded, t, torch.randn_like(latent)
        )
        loss = losses.mean()
        training.descend(loss)
        return {"mse": loss.item()}

    @torch.no_grad()
    def measure(number: int) -> Mapping[str, float]:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            return model(x, t, lq=inputs)

        model.eval()
        with training.average.applied():
            one = diffusion.predict_from_prior(predict, start, noise)
            many = diffusion.sample_ddim(predict, start, noise)
        model.train()
        images = {
            "bicubic": upsample(inputs, settings.pairs.scale),
            "input": decode(autoencoder, start),
            "one": decode(autoencoder, one),
            "many": decode(autoencoder, many),
        }
        measured = {f"psnr_{name}": mean_psnr(image, held_out) for name, image in images.items()}
        for name, image in images.items():
            measured[f"st_lpips_{name}"] = float(perceptual(image.clamp(-1, 1), held_out).mean())
        error = float((start - truth).square().mean())
        return measured | {
            "latent_error_input": error,
            "latent_error_one": float((one - truth).square().mean()),
            "latent_error_many": float((many - truth).square().mean()),
        }

    training.run(folder, "teacher", step, measure, log)
    with training.average.applied():
        trained = build_network(settings.network)
        trained.load_state_dict(model.state_dict())
    return trained.eval().requires_grad_(False)


def held_out_inputs(images: Tensor, settings: TrialSettings) -> Tensor:
    """Degraded as the preset does, always alike: (N, 3, H, W) in [-1, 1] -> (N, 3, H / scale, W / scale)."""
    pixels = batch_pixels(images)
    rngs = (np.random.default_rng([7, row]) for row in range(len(pixels)))
    scale, degradation = settings.pairs.scale, settings.pairs.degradation
    return to_images([degrade(image, degradation, rng, scale) for image, rng in zip(pixels, rngs, strict=True)])
