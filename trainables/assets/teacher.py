"""Trains the ResShift teacher that ships with the project, in the latents of the shipped autoencoder.

In two parts. The first uses ResShift's objective and schedule. The second uses the schedule of the preset `sample`,
whose chain ends at a noise of 0.66, and adds the perceptual term of ResShift's journal version. That version has the
term at all timesteps; over 15 steps each estimate then sharpens the one before, too much in the end. Here it is only at
the two timesteps whose estimates are seen: where one-step restoration starts, and where the chain ends.

Degradations are those of `sample`. A trial's loop differs in two points: here new pairs are made all the time, and
images have several sizes and aspect ratios, because the network also restores other sizes than 64 px.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor

from trainables.assets.crops import Crops, batch_pixels, to_images
from trainables.assets.held_out import held_out_crops, mean_psnr
from trainables.assets.training import Pool, Training
from trainables.diffusion.resshift import per_sample_mse
from trainables.images.degradations.degradation import degrade
from trainables.images.tensors import upsample
from trainables.metrics.st_lpips import STLPIPS
from trainables.networks.autoencoder import decode, encode
from trainables.networks.swin_unet import SwinUNet
from trainables.pretrained.resshift import build_diffusion, build_network
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset
from trainables.settings.resshift import ResShiftSettings

COUNTS = (8, 5, 5, 4)  # pairs in a batch of each size of the pool
MARGIN = 5  # degraded pixels around a crop while it is degraded, on average


@dataclass(frozen=True)
class TeacherRecipe:
    """How the shipped teacher is trained, in one of two parts.

    Attributes:
        name: of its checkpoints.
        published: whether the schedule is the published one; otherwise that of `sample`.
        pool: pairs kept of each shape.
        fresh: share of a batch that is newly made; the rest comes from the pool.
        noisiest_share: share of a batch at the noisiest timestep, where one-step restoration starts.
        cleanest_share: share at timestep 0, where a chain of steps ends.
        noisiest_weight, cleanest_weight: of ST-LPIPS at these two timesteps.
        tries, blur: see `CropSettings`.
    """

    name: str = "teacher"
    published: bool = True
    steps: int = 7_000
    learning_rate: float = 7e-4
    pool: int = 2048
    fresh: float = 0.125
    noisiest_share: float = 0.15
    cleanest_share: float = 0.0
    noisiest_weight: float = 0.0
    cleanest_weight: float = 0.0
    tries: int = 2
    blur: float = 0.0
    ema_decay: float = 0.999
    seed: int = 0


FIRST = TeacherRecipe()
SECOND = TeacherRecipe(
    "teacher_second",
    published=False,
    steps=4_000,
    learning_rate=4e-4,
    noisiest_share=0.2,
    cleanest_share=0.15,
    noisiest_weight=0.2,
    cleanest_weight=0.12,
    tries=1,
    blur=0.3,
    seed=1,
)


@dataclass(frozen=True)
class LatentPair:
    """Tensors of one pair: `degraded` (3, h, w) and `target` (3, 4h, 4w) in [-1, 1]; `latent` and `latent_degraded`
    (8, h, w)."""

    degraded: Tensor
    target: Tensor
    latent: Tensor
    latent_degraded: Tensor


def teacher_settings(autoencoder: Path, published: bool = False) -> TrialSettings:
    """The preset `sample` with that autoencoder, and with the published schedule if wanted."""
    changes: dict[str, Any] = {"method": "resshift", "autoencoder.weights": str(autoencoder)}
    if published:
        changes |= {f"resshift.{name}": value for name, value in ResShiftSettings().schedule.items()}
    return override(preset("sample").trial, changes)


class PairSource:
    """Makes pairs from random crops."""

    def __init__(self, crops: Crops, autoencoder: VQModel, settings: TrialSettings, recipe: TeacherRecipe) -> None:
        self._crops, self._autoencoder, self._settings = crops, autoencoder, settings
        self._pool = Pool(COUNTS, recipe.pool, recipe.fresh, self._make)

    def batch(self, rng: np.random.Generator) -> LatentPair:
        """Pairs of one shape, stacked."""
        chosen = self._pool.batch(rng)
        return LatentPair(*(torch.stack([getattr(pair, item.name) for pair in chosen]) for item in fields(LatentPair)))

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
        made = zip(degraded_images, images, latents, latents_degraded, strict=True)
        return [LatentPair(*tensors) for tensors in made]


def train_teacher(
    crops: Crops,
    autoencoder: VQModel,
    settings: TrialSettings,
    recipe: TeacherRecipe,
    folder: Path,
    log: Callable[[str], None] = print,
    start: Mapping[str, Tensor] | None = None,
) -> SwinUNet:
    """Trains from the weights `start`, or continues from `folder`; returns the averaged weights."""
    torch.manual_seed(recipe.seed)
    model = build_network(settings.network)
    if start is not None:
        model.load_state_dict(start)
    diffusion = build_diffusion(settings.resshift)
    training, perceptual = Training(model, recipe), STLPIPS("alex")
    source = PairSource(crops, autoencoder, settings, recipe)
    held_out = held_out_crops(8)
    inputs = held_out_inputs(held_out, settings)
    truth = encode(autoencoder, held_out)
    given = encode(autoencoder, upsample(inputs, settings.pairs.scale))
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(0))

    def step(number: int) -> Mapping[str, float]:
        pairs = source.batch(training.begin(number))
        t = torch.randint(diffusion.steps, (len(pairs.latent),))
        t[torch.rand(len(t)) < recipe.noisiest_share] = diffusion.last
        if recipe.cleanest_share:
            t[torch.rand(len(t)) < recipe.cleanest_share] = 0
        estimate = diffusion.predict_x0(
            lambda x, t: model(x, t, lq=pairs.degraded),
            pairs.latent,
            pairs.latent_degraded,
            t,
            torch.randn_like(pairs.latent),
        )
        terms = {"mse": per_sample_mse(estimate, pairs.latent).mean()}
        weights = recipe.noisiest_weight * (t == diffusion.last) + recipe.cleanest_weight * (t == 0)
        if (seen := weights > 0).any():
            restored = decode(autoencoder, estimate[seen], straight_through=True)
            distances = perceptual(restored.clamp(-1, 1), pairs.target[seen]).flatten()
            terms["perceptual"] = (weights[seen] * distances).sum() / len(t)
        training.descend(torch.stack(list(terms.values())).sum())
        return {name: term.item() for name, term in terms.items()}

    @torch.no_grad()
    def measure(number: int) -> Mapping[str, float]:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            return model(x, t, lq=inputs)

        model.eval()
        with training.average.applied():
            one = diffusion.predict_from_prior(predict, given, noise)
            many = diffusion.sample_ddim(predict, given, noise)
        model.train()
        images = {
            "bicubic": upsample(inputs, settings.pairs.scale),
            "input": decode(autoencoder, given),
            "one": decode(autoencoder, one),
            "many": decode(autoencoder, many),
        }
        measured = {f"psnr_{name}": mean_psnr(image, held_out) for name, image in images.items()}
        for name, image in images.items():
            measured[f"st_lpips_{name}"] = float(perceptual(image.clamp(-1, 1), held_out).mean())
        error = float((given - truth).square().mean())
        return measured | {
            "latent_error_input": error,
            "latent_error_one": float((one - truth).square().mean()),
            "latent_error_many": float((many - truth).square().mean()),
        }

    training.run(folder, recipe.name, step, measure, log)
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
