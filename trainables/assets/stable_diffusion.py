"""Trains the small Stable-Diffusion-shaped base that ships with the project: an autoencoder and a prior in its latents.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022), in the classes of diffusers
and only smaller: a KL autoencoder with one latent pixel for 4 x 4 image pixels, and a U-Net with cross-attention that
predicts noise. There is no text encoder: one fixed conditioning stands for the empty prompt, and the prior is trained
with it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from trainables.assets.autoencoder import LATENT_CHANNELS, NORM_GROUPS
from trainables.assets.autoencoder import SHAPES as AUTOENCODER_SHAPES
from trainables.assets.crops import Crops
from trainables.assets.held_out import held_out_crops, reconstruction
from trainables.assets.linear_start import block_components, start_linear
from trainables.assets.training import Pool, Training
from trainables.metrics.st_lpips import STLPIPS

CROSS_ATTENTION_DIM = 32
NOISE_MEASURED_AT = (50, 200, 500, 800, 999)

UNET_COUNTS = (16, 10, 10, 7)  # latents in a batch of each size of the pool


@dataclass(frozen=True)
class BaseAutoencoderRecipe:
    """How the base's autoencoder is trained; learning rate at its peak.

    `kl_weight` is for the divergence summed over a 64 px image's latents, against the mean over its pixels.
    `perceptual_from` is a share of the steps.
    """

    steps: int = 7_000
    learning_rate: float = 3e-4
    widths: tuple[int, ...] = (16, 32, 96)
    kl_weight: float = 1e-6
    perceptual_from: float = 0.75
    perceptual_weight: float = 0.05
    ema_decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class BaseUNetRecipe:
    """How the base's noise predictor is trained: on latents of random crops, each used about eight times."""

    steps: int = 6_000
    learning_rate: float = 1e-3
    pool: int = 4096
    fresh: float = 0.125
    ema_decay: float = 0.999
    seed: int = 0


def train_base_autoencoder(
    crops: Crops, recipe: BaseAutoencoderRecipe, folder: Path, log: Callable[[str], None] = print
) -> AutoencoderKL:
    """Trains, or continues from `folder`; returns the averaged weights, with the `scaling_factor` that gives latents
    unit deviation."""
    torch.manual_seed(recipe.seed)
    model = new_autoencoder(recipe.widths)
    start_linear(model, block_components(crops.batch(200, 64, 64, np.random.default_rng(recipe.seed)), LATENT_CHANNELS))
    training, perceptual = Training(model, recipe), STLPIPS("alex")
    held_out = held_out_crops(8)

    def step(number: int) -> Mapping[str, float]:
        rng = training.begin(number)
        height, width, count = AUTOENCODER_SHAPES[rng.integers(len(AUTOENCODER_SHAPES))]
        target = crops.batch(count, height, width, rng)
        posterior = model.encode(target).latent_dist
        restored = model.decode(posterior.sample()).sample
        per_crop = posterior.kl().mean() * (64 * 64 / (height * width))
        terms = {
            "l1": F.l1_loss(restored, target),
            "l2": 4 * F.mse_loss(restored, target),
            "kl": recipe.kl_weight * per_crop,
        }
        if number >= recipe.perceptual_from * recipe.steps:
            terms["perceptual"] = recipe.perceptual_weight * perceptual(restored, target).mean()
        training.descend(torch.stack(list(terms.values())).sum())
        return {name: term.item() for name, term in terms.items()}

    @torch.no_grad()
    def measure(number: int) -> Mapping[str, float]:
        with training.average.applied():
            restored = model.decode(model.encode(held_out).latent_dist.mode()).sample
        return reconstruction(restored, held_out, perceptual)

    training.run(folder, "base_vae", step, measure, log)
    with training.average.applied():
        trained = copy.deepcopy(model).eval().requires_grad_(False)
    rng = np.random.default_rng(recipe.seed)
    deviation = torch.cat([encode_crops(trained, crops.batch(16, 64, 64, rng)) for _ in range(8)]).std().item()
    trained.register_to_config(scaling_factor=round(1 / deviation, 5))
    return trained


def train_base_unet(
    crops: Crops,
    autoencoder: AutoencoderKL,
    empty_prompt: Tensor,
    recipe: BaseUNetRecipe,
    folder: Path,
    log: Callable[[str], None] = print,
) -> UNet2DConditionModel:
    """Trains a prior of photographs' latents that predicts noise, at all timesteps alike, or continues from `folder`;
    returns the averaged weights. `empty_prompt`: (1, N, 32), the only conditioning it sees."""
    torch.manual_seed(recipe.seed)
    model = _new_unet()
    scheduler = base_scheduler()
    training = Training(model, recipe)
    scale = autoencoder.config.scaling_factor
    held_out = encode_crops(autoencoder, held_out_crops(8)) * scale

    def latents(count: int, height: int, width: int, rng: np.random.Generator) -> Tensor:
        return encode_crops(autoencoder, crops.batch(count, height, width, rng)) * scale

    pool = Pool(UNET_COUNTS, recipe.pool, recipe.fresh, latents)

    def step(number: int) -> Mapping[str, float]:
        x0 = torch.stack(pool.batch(training.begin(number)))
        t = torch.randint(scheduler.config.num_train_timesteps, (len(x0),))
        noise = torch.randn_like(x0)
        predicted = model(scheduler.add_noise(x0, noise, t), t, empty_prompt.expand(len(x0), -1, -1)).sample
        loss = F.mse_loss(predicted, noise)
        training.descend(loss)
        return {"noise_mse": loss.item()}

    def measure(number: int) -> Mapping[str, float]:
        with training.average.applied():
            return {
                f"noise_mse_{t}": noise_errors(model, scheduler, held_out, empty_prompt, t)["unet"]
                for t in NOISE_MEASURED_AT
            }

    training.run(folder, "base_unet", step, measure, log)
    with training.average.applied():
        return copy.deepcopy(model).eval().requires_grad_(False)


def _new_unet() -> UNet2DConditionModel:
    """Stable Diffusion's layout with three levels instead of four, fresh weights; sides of latents are multiples of 4.

    `attention_head_dim` is the number of heads here, as it is in Stable Diffusion's own configuration.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CROSS_ATTENTION_DIM,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def base_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1 and 2, with its numbers."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def draw_empty_prompt() -> Tensor:
    """(1, 2, 32), standard normal: what stands for a text encoder's output for the empty prompt, its start and end."""
    return torch.randn(1, 2, CROSS_ATTENTION_DIM, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def noise_errors(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    empty_prompt: Tensor,
    timestep: int,
) -> dict[str, float]:
    """Mean squared errors of noise predictions at one timestep, on scaled latents (B, 8, h, w).

    Returns:
        `unet`: the network's. `zero`: that of predicting 0. `input`: that of predicting the noised latents, which is
        right in the limit of noise alone. `scaled`: that of the best multiple of them, in hindsight.
    """
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(timestep))
    t = torch.full((len(latents),), timestep)
    noised = scheduler.add_noise(latents, noise, t)
    predictions = {
        "unet": unet(noised, t, empty_prompt.expand(len(latents), -1, -1)).sample,
        "zero": torch.zeros_like(noise),
        "input": noised,
        "scaled": noised * (noised * noise).sum() / noised.square().sum(),
    }
    return {name: F.mse_loss(predicted, noise).item() for name, predicted in predictions.items()}


@torch.no_grad()
def encode_crops(model: AutoencoderKL, crops: Tensor) -> Tensor:
    """Mean latents (B, 8, H/4, W/4) of crops (B, 3, H, W) in [-1, 1], not scaled."""
    return torch.cat([model.encode(part).latent_dist.mode() for part in crops.split(32)])


def new_autoencoder(widths: tuple[int, ...]) -> AutoencoderKL:
    """The VQ-f4's shape without a codebook."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
    )
