"""Trains the small VQ-f4 autoencoder that ships with the project.

The shape is the published VQ-f4 (Rombach et al. 2022: three levels, one latent pixel for 4 x 4 image pixels), narrower
and with more latent channels. In stages:

1. Without codebook, from a linear start: noise on the latents makes the latent space smooth, and a penalty keeps their
   mean square near 1.
2. The codebook is drawn from the latents by k-means (a random start collapses to a few codes); training continues
   with quantisation.
3. For the last steps a perceptual term joins.
4. Latents are rescaled to unit standard deviation, which ResShift's input scaling assumes. The rescaling is exact:
   what `quant_conv` and the codebook gain, `post_quant_conv` loses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor

from trainables.assets.crops import Crops
from trainables.assets.held_out import held_out_crops, reconstruction
from trainables.assets.linear_start import block_components, start_linear
from trainables.assets.training import Training
from trainables.metrics.st_lpips import STLPIPS
from trainables.networks.autoencoder import build_vq_f4
from trainables.training.ema import ExponentialMovingAverage

# Share of batches of each shape: (height, width, crops).
SHAPES = ((48, 48, 4), (48, 48, 4), (48, 48, 4), (64, 32, 4), (32, 64, 4), (64, 64, 2), (64, 96, 2), (96, 64, 2))

NORM_GROUPS = 1  # what `start_linear` needs
# The published VQ-f4 has 3. A narrow network that is trained for an hour does not learn to fold 48 numbers into 3:
# with 3 channels it stayed 1 dB above the mean colours of the blocks, quantised or not.
LATENT_CHANNELS = 8


@dataclass(frozen=True)
class AutoencoderRecipe:
    """How the shipped autoencoder is trained. Sizes in pixels, learning rate at its peak.

    `codebook_from` and `perceptual_from` are shares of the steps. `noise` is the deviation of the noise on latents.
    """

    steps: int = 9_000
    learning_rate: float = 3e-4
    codebook_from: float = 0.55
    perceptual_from: float = 0.85
    perceptual_weight: float = 0.05
    noise: float = 0.15
    scale_weight: float = 0.1
    codebook_size: int = 16384
    widths: tuple[int, ...] = (16, 32, 96)
    ema_decay: float = 0.999
    seed: int = 0


def train_autoencoder(
    crops: Crops, recipe: AutoencoderRecipe, folder: Path, log: Callable[[str], None] = print
) -> VQModel:
    """Trains, or continues from `folder`; returns the averaged weights."""
    torch.manual_seed(recipe.seed)
    model = _new_model(recipe)
    start_linear(model, block_components(crops.batch(200, 64, 64, np.random.default_rng(recipe.seed)), LATENT_CHANNELS))
    training, perceptual = Training(model, recipe), STLPIPS("alex")
    held_out = held_out_crops(8)

    def step(number: int) -> Mapping[str, float]:
        rng = training.begin(number)
        if number == int(recipe.codebook_from * recipe.steps):
            _draw_codebook(model, training.average, crops, recipe)
        height, width, count = SHAPES[rng.integers(len(SHAPES))]
        target = crops.batch(count, height, width, rng)
        latents = model.encode(target).latents
        terms: dict[str, Tensor] = {}
        if number < int(recipe.codebook_from * recipe.steps):
            terms["scale"] = recipe.scale_weight * (latents.square().mean() - 1).square()
            latents = latents + recipe.noise * torch.randn_like(latents)
        else:
            latents, terms["codebook"], _ = model.quantize(latents)
        restored = model.decoder(model.post_quant_conv(latents))
        terms["l1"], terms["l2"] = F.l1_loss(restored, target), 4 * F.mse_loss(restored, target)
        if number >= int(recipe.perceptual_from * recipe.steps):
            terms["perceptual"] = recipe.perceptual_weight * perceptual(restored, target).mean()
        training.descend(torch.stack(list(terms.values())).sum())
        return {name: term.item() for name, term in terms.items()}

    @torch.no_grad()
    def measure(number: int) -> Mapping[str, float]:
        quantised = number > int(recipe.codebook_from * recipe.steps)
        with training.average.applied():
            latents = model.encode(held_out).latents
            restored = model.decode(latents, force_not_quantize=not quantised).sample
        return reconstruction(restored, held_out, perceptual) | {"latent_std": float(latents.std())}

    training.run(folder, "vq_f4", step, measure, log)
    with training.average.applied():
        model.eval().requires_grad_(False)
        _unit_variance(model, crops, np.random.default_rng(recipe.seed))
        trained = _new_model(recipe)
        trained.load_state_dict(model.state_dict())
    return trained.eval().requires_grad_(False)


def _new_model(recipe: AutoencoderRecipe) -> VQModel:
    first = recipe.widths[0]
    return build_vq_f4(
        first,
        [width // first for width in recipe.widths],
        layers_per_block=1,
        codebook_size=recipe.codebook_size,
        latent_channels=LATENT_CHANNELS,
        norm_groups=NORM_GROUPS,
    )


@torch.no_grad()
def _draw_codebook(model: VQModel, average: ExponentialMovingAverage, crops: Crops, recipe: AutoencoderRecipe) -> None:
    """k-means of the averaged encoder's latents becomes the codebook of the model and of its average."""
    rng = np.random.default_rng([recipe.seed, 1])
    with average.applied():
        latents = [model.encode(crops.batch(16, 64, 64, rng)).latents for _ in range(24)]
        codes = _k_means(torch.cat(latents).movedim(1, -1).flatten(0, -2), recipe.codebook_size)
        model.quantize.embedding.weight.copy_(codes)
    model.quantize.embedding.weight.copy_(codes)


def _k_means(vectors: Tensor, count: int, rounds: int = 6) -> Tensor:
    """`(N, C) -> (count, C)`: Lloyd's algorithm from random vectors; a centre that attracts none stays."""
    centres = vectors[torch.randperm(len(vectors))[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in vectors.split(4096)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        counts = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


@torch.no_grad()
def _unit_variance(model: VQModel, crops: Crops, rng: np.random.Generator) -> None:
    deviation = torch.cat([model.encode(crops.batch(16, 64, 64, rng)).latents for _ in range(8)]).std()
    model.quant_conv.weight.div_(deviation)
    model.quant_conv.bias.div_(deviation)
    model.quantize.embedding.weight.div_(deviation)
    model.post_quant_conv.weight.mul_(deviation)
