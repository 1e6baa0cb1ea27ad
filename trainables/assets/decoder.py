"""Trains the decoder of the shipped VQ-f4 autoencoder on, with encoder and codebook as they are.

So its latents stay the same. A decoder that no longer has to follow a changing codebook gets better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor, nn

from trainables.assets.crops import Crops
from trainables.assets.held_out import held_out_crops, reconstruction
from trainables.assets.training import Training
from trainables.metrics.st_lpips import STLPIPS
from trainables.networks.autoencoder import decode, encode, quantise

# Share of batches of each shape: (height, width, crops).
SHAPES = ((64, 64, 4), (64, 64, 4), (64, 96, 3), (96, 64, 3), (96, 96, 2))


@dataclass(frozen=True)
class DecoderRecipe:
    """How the shipped decoder is trained. Learning rate at its peak."""

    steps: int = 3_000
    learning_rate: float = 3e-4
    perceptual_weight: float = 0.05
    ema_decay: float = 0.999
    seed: int = 1


def train_decoder(
    crops: Crops, model: VQModel, recipe: DecoderRecipe, folder: Path, log: Callable[[str], None] = print
) -> VQModel:
    """Trains the decoder of `model` in place, or continues from `folder`; returns it with the averaged weights."""
    model.requires_grad_(False)
    decoder = nn.ModuleList([model.post_quant_conv, model.decoder]).requires_grad_(True)
    training, perceptual = Training(decoder, recipe), STLPIPS("alex")
    held_out = held_out_crops(8)
    held_out_latents = encode(model, held_out)

    def codes(images: Tensor) -> Tensor:
        with torch.no_grad():
            return quantise(model, encode(model, images))

    def step(number: int) -> Mapping[str, float]:
        rng = training.begin(number)
        height, width, count = SHAPES[rng.integers(len(SHAPES))]
        target = crops.batch(count, height, width, rng)
        restored = model.decode(codes(target), force_not_quantize=True).sample
        terms = {
            "l1": F.l1_loss(restored, target),
            "l2": 4 * F.mse_loss(restored, target),
            "perceptual": recipe.perceptual_weight * perceptual(restored, target).mean(),
        }
        training.descend(torch.stack(list(terms.values())).sum())
        return {name: term.item() for name, term in terms.items()}

    @torch.no_grad()
    def measure(number: int) -> Mapping[str, float]:
        with training.average.applied():
            restored = decode(model, held_out_latents)
        return reconstruction(restored, held_out, perceptual)

    training.run(folder, "vq_f4_decoder", step, measure, log)
    with training.average.applied():
        averaged = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    decoder.load_state_dict(averaged)
    return model.eval().requires_grad_(False)
