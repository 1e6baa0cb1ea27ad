"""Trains the small base that ships with the project: an autoencoder and a noise predictor, as in Stable Diffusion.

It follows Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022), with smaller
networks of diffusers' classes: a KL autoencoder with one latent pixel for 4 x 4 image pixels, and a U-Net with
cross-attention that predicts noise. There is no text encoder: one fixed conditioning represents the empty prompt, and
the U-Net is trained with it only. Both train on the sample's training photographs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor

from trainables.assets.autoencoder import random_crops
from trainables.metrics.st_lpips import STLPIPS
from trainables.training.ema import ExponentialMovingAverage

LATENT_CHANNELS = 4
CROSS_ATTENTION_DIM = 32


@dataclass(frozen=True)
class BaseAutoencoderRecipe:
    """Settings of the base autoencoder's training. Sizes are in pixels; the learning rate is its peak.

    The perceptual term is used in the last third of the steps only, on the first `perceptual_images` of a batch, as for
    the VQ-f4. `kl_weight` weights the divergence summed over an image's latents; the pixel loss is a mean over pixels.
    """

    steps: int = 4800
    batch_size: int = 8
    crop: int = 48
    learning_rate: float = 1e-3
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.08
    perceptual_images: int = 4
    ema_decay: float = 0.998
    seed: int = 0


@dataclass(frozen=True)
class BaseUNetRecipe:
    """Settings of the noise predictor's training, on the latents of `crops` random crops of `crop` pixels."""

    steps: int = 5200
    batch_size: int = 16
    crops: int = 8192
    crop: int = 64
    learning_rate: float = 1e-3
    ema_decay: float = 0.999
    seed: int = 0


def train_base_autoencoder(
    photographs: Sequence[np.ndarray],
    vq: VQModel,
    recipe: BaseAutoencoderRecipe,
    log: Callable[[str], None] = print,
) -> AutoencoderKL:
    """Trains on uint8 photographs (H, W, 3) at least 64 pixels high and wide, starting from a VQ-f4's encoder and
    decoder. Returns the averaged weights; their `scaling_factor` scales latents to unit standard deviation."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = _from_vq(vq)
    average = ExponentialMovingAverage(model, recipe.ema_decay)
    perceptual = STLPIPS("alex")
    optimiser, schedule = _optimisation(model, recipe.learning_rate, recipe.steps)
    started = time.monotonic()
    for step in range(recipe.steps):
        target = random_crops(photographs, recipe.batch_size, recipe.crop, rng)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(target).latent_dist
            restored = model.decode(posterior.sample()).sample.float()
        pixel_loss = F.l1_loss(restored, target) + 2 * F.mse_loss(restored, target)
        divergence = posterior.kl().mean()
        loss = pixel_loss + recipe.kl_weight * divergence
        if step >= recipe.steps * 2 // 3:
            seen = slice(recipe.perceptual_images)
            loss = loss + recipe.perceptual_weight * perceptual(restored[seen], target[seen]).mean()
        _descend(loss, model, optimiser, schedule)
        average.update()
        if step % 100 == 0 or step == recipe.steps - 1:
            log(
                f"step {step} of {recipe.steps}: pixel {pixel_loss.item():.4f}, "
                f"divergence {divergence.item():.0f}, {time.monotonic() - started:.0f} s"
            )
    with average.applied():
        trained = copy.deepcopy(model).eval().requires_grad_(False)
    deviation = encode_crops(trained, random_crops(photographs, 128, 64, rng)).std().item()
    trained.register_to_config(scaling_factor=round(1 / deviation, 5))
    return trained


def train_base_unet(
    photographs: Sequence[np.ndarray],
    autoencoder: AutoencoderKL,
    empty_prompt: Tensor,
    recipe: BaseUNetRecipe,
    log: Callable[[str], None] = print,
) -> UNet2DConditionModel:
    """Trains a noise predictor on the photographs' latents, at uniformly drawn timesteps; returns averaged weights.
    `empty_prompt`: (1, N, 32), the only conditioning."""
    torch.manual_seed(recipe.seed)
    model = _new_unet()
    scheduler = base_scheduler()
    average = ExponentialMovingAverage(model, recipe.ema_decay)
    optimiser, schedule = _optimisation(model, recipe.learning_rate, recipe.steps)
    crops = random_crops(photographs, recipe.crops, recipe.crop, np.random.default_rng(recipe.seed))
    latents = encode_crops(autoencoder, crops) * autoencoder.config.scaling_factor
    running, started = 1.0, time.monotonic()
    for step in range(recipe.steps):
        x0 = latents[torch.randint(len(latents), (recipe.batch_size,))]
        t = torch.randint(scheduler.config.num_train_timesteps, (recipe.batch_size,))
        noise = torch.randn_like(x0)
        predicted = model(scheduler.add_noise(x0, noise, t), t, empty_prompt.expand(len(x0), -1, -1)).sample
        loss = F.mse_loss(predicted, noise)
        _descend(loss, model, optimiser, schedule)
        average.update()
        running += 0.02 * (loss.item() - running)
        if step % 100 == 0 or step == recipe.steps - 1:
            log(f"step {step} of {recipe.steps}: noise MSE about {running:.4f}, {time.monotonic() - started:.0f} s")
    with average.applied():
        return copy.deepcopy(model).eval().requires_grad_(False)


def _new_unet() -> UNet2DConditionModel:
    """Stable Diffusion's layout with three levels instead of four and new weights; latent sides are multiples of 4.

    `attention_head_dim` is the number of heads here, as in Stable Diffusion's own configuration.
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
    """The noise schedule of Stable Diffusion 1 and 2."""
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
    """(1, 2, 32), standard normal: replaces a text encoder's output for the empty prompt (start and end token)."""
    return torch.randn(1, 2, CROSS_ATTENTION_DIM, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def noise_errors(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    empty_prompt: Tensor,
    timestep: int,
) -> dict[str, float]:
    """Mean squared errors of noise predictions at one timestep, on scaled latents (B, 4, h, w).

    Returns:
        Errors of four predictions. `unet`: the network. `zero`: 0. `input`: the noised latents, which is exact for
        pure noise. `scaled`: the noised latents times the best factor, fitted on the true noise.
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
    """Unscaled mean latents (B, 4, H/4, W/4) of crops (B, 3, H, W) in [-1, 1]."""
    return torch.cat([model.encode(part).latent_dist.mode() for part in crops.split(32)])


def _from_vq(vq: VQModel) -> AutoencoderKL:
    """A KL autoencoder that starts as the VQ-f4 without its codebook. The fourth latent channel is new. All channels
    are sampled with a standard deviation of exp(-3)."""
    config = vq.config
    model = AutoencoderKL(
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
    )
    own = model.state_dict()
    with torch.no_grad():
        for quant_conv in (model.quant_conv, model.post_quant_conv):
            torch.nn.init.dirac_(quant_conv.weight)
            torch.nn.init.zeros_(quant_conv.bias)
        for name, weights in vq.state_dict().items():
            if name in own:
                # If the new layer has more channels, the first ones are copied from the VQ-f4.
                own[name][tuple(slice(size) for size in weights.shape)] = weights
        model.quant_conv.weight[LATENT_CHANNELS:] = 0
        model.quant_conv.bias[LATENT_CHANNELS:] = -6
    return model


def _optimisation(
    model: torch.nn.Module, learning_rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW; linear warm-up over 100 steps, then a cosine down to 2 % of the peak."""
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    warm = min(100, steps // 2)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=warm)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps - warm, 0.02 * learning_rate)
    return optimiser, torch.optim.lr_scheduler.SequentialLR(optimiser, [warm_up, cosine], [warm])


def _descend(
    loss: Tensor,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    schedule.step()
