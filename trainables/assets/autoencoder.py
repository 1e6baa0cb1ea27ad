"""Trains the small VQ-f4 autoencoder that ships with the project.

The architecture is the published VQ-f4 (Rombach et al. 2022: three levels, 3 latent channels, one latent pixel for
4 x 4 image pixels) with fewer channels. It is trained on the sample's training photographs only:

1. The first sixth of the steps trains without quantisation, so that the encoder learns its latents first.
2. The codebook is drawn from those latents (a random codebook collapses to a few codes), and training continues.
3. Latents are rescaled to unit standard deviation, which ResShift's input scaling assumes. This is exact:
   `quant_conv` and the codebook are divided by a factor, and `post_quant_conv` is multiplied by it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor

from trainables.metrics.st_lpips import STLPIPS
from trainables.networks.autoencoder import build_vq_f4


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Settings of the autoencoder's training. Sizes are in pixels; the learning rate is its peak.

    The perceptual term costs as much time as the autoencoder. It is therefore used in the last third of the steps
    only, on the first `perceptual_images` of a batch.
    """

    steps: int = 9000
    batch_size: int = 8
    crop: int = 48
    learning_rate: float = 1.5e-3
    perceptual_weight: float = 0.08
    perceptual_images: int = 4
    codebook_size: int = 4096
    channels: int = 24
    ema_decay: float = 0.998
    seed: int = 0


def random_crops(photographs: Sequence[np.ndarray], batch: int, size: int, rng: np.random.Generator) -> Tensor:
    """(batch, 3, size, size) crops in [-1, 1], with random flips, colour channel order and contrast.

    The sample has few photographs, some of one hue (retina, histology). Permuted channels and random contrast add other
    colours.
    """
    areas = np.sqrt([p.shape[0] * p.shape[1] for p in photographs])
    crops = []
    for which in rng.choice(len(photographs), batch, p=areas / areas.sum()):
        pixels = photographs[which]
        top = rng.integers(pixels.shape[0] - size + 1)
        left = rng.integers(pixels.shape[1] - size + 1)
        crop = pixels[top : top + size, left : left + size].astype(np.float32) / 127.5 - 1
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < 0.5:
            crop = crop.transpose(1, 0, 2)
        if rng.random() < 0.5:
            crop = crop[..., rng.permutation(3)]
        if rng.random() < 0.5:
            crop = np.clip(crop * rng.uniform(0.6, 1.4) + rng.uniform(-0.3, 0.3), -1, 1)
        crops.append(np.ascontiguousarray(crop.transpose(2, 0, 1)))
    return torch.from_numpy(np.stack(crops))


def train_autoencoder(
    photographs: Sequence[np.ndarray], recipe: AutoencoderRecipe, log: Callable[[str], None] = print
) -> VQModel:
    """Trains on uint8 photographs (H, W, 3) at least `recipe.crop` high and wide; returns the averaged weights."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = _new_model(recipe)
    average = _new_model(recipe)
    average.load_state_dict(model.state_dict())
    perceptual = STLPIPS("alex")
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    codebook_from = recipe.steps // 6
    started = time.monotonic()
    for step in range(recipe.steps):
        optimiser.param_groups[0]["lr"] = recipe.learning_rate * _schedule(step, recipe.steps)
        if step == codebook_from:
            _draw_codebook(model, photographs, recipe, rng)
            average.load_state_dict(model.state_dict())
        target = random_crops(photographs, recipe.batch_size, recipe.crop, rng)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(target).latents
        latents = latents.float()
        if step < codebook_from:
            quantised = latents
            # Keeps the latents near unit scale before there is a codebook.
            codebook_loss = 0.01 * (latents.std() - 1).square()
        else:
            quantised, codebook_loss, _ = model.quantize(latents)
        with torch.autocast("cpu", torch.bfloat16):
            restored = model.decoder(model.post_quant_conv(quantised))
        restored = restored.float()
        pixel_loss = F.l1_loss(restored, target) + 2 * F.mse_loss(restored, target)
        loss = pixel_loss + codebook_loss
        if step >= recipe.steps * 2 // 3:
            seen = slice(recipe.perceptual_images)
            loss = loss + recipe.perceptual_weight * perceptual(restored[seen], target[seen]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        _update_average(average, model, min(recipe.ema_decay, (1 + step) / (10 + step)))
        if step % 100 == 0 or step == recipe.steps - 1:
            log(
                f"step {step} of {recipe.steps}: pixel {pixel_loss.item():.4f}, "
                f"codebook {codebook_loss.item():.4f}, {time.monotonic() - started:.0f} s"
            )
    _unit_variance(average, photographs, rng)
    return average.eval().requires_grad_(False)


def _new_model(recipe: AutoencoderRecipe) -> VQModel:
    return build_vq_f4(recipe.channels, layers_per_block=1, codebook_size=recipe.codebook_size, norm_groups=8)


def _schedule(step: int, steps: int) -> float:
    """Learning rate relative to its peak: linear warm-up over 100 steps, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _draw_codebook(
    model: VQModel, photographs: Sequence[np.ndarray], recipe: AutoencoderRecipe, rng: np.random.Generator
) -> None:
    crops = random_crops(photographs, 256, recipe.crop, rng)
    latents = torch.cat([model.encode(part).latents for part in crops.split(32)])
    vectors = latents.movedim(1, -1).flatten(0, -2)
    chosen = torch.from_numpy(rng.choice(len(vectors), recipe.codebook_size, replace=False))
    model.quantize.embedding.weight.copy_(vectors[chosen])


@torch.no_grad()
def _update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def _unit_variance(model: VQModel, photographs: Sequence[np.ndarray], rng: np.random.Generator) -> None:
    crops = random_crops(photographs, 128, 64, rng)
    deviation = torch.cat([model.encode(part).latents for part in crops.split(32)]).std()
    model.quant_conv.weight.div_(deviation)
    model.quant_conv.bias.div_(deviation)
    model.quantize.embedding.weight.div_(deviation)
    model.post_quant_conv.weight.mul_(deviation)
