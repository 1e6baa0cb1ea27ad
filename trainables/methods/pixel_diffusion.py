"""Diffusion on pixels: without an autoencoder, and so without its losses.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020), conditioned as in Saharia et al., "Image
Super-Resolution via Iterative Refinement" (2021): the upsampled degraded image is concatenated to the noisy one. The
network is diffusers' `UNet2DModel`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from trainables.common.errors import blamed_on
from trainables.diffusion.gaussian import Denoise, GaussianDiffusion, PredictionType, alphas_cumprod
from trainables.images.tensors import upsample
from trainables.methods.method import Batch
from trainables.methods.shared.gaussian import GaussianMethod
from trainables.settings import PixelSettings, TrialSettings

BETA_START, BETA_END = 1e-4, 0.02  # Ho et al. 2020


class PixelDiffusion(GaussianMethod):
    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        pixel = settings.pixel
        unet = build_unet(pixel)
        if settings.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"unet": unet.to(device)})
        self.size_multiple = 2 ** (len(pixel.channels) - 1)

    @classmethod
    def schedule(cls, settings: TrialSettings) -> GaussianDiffusion:
        pixel, diffusion = settings.pixel, settings.diffusion
        abar = alphas_cumprod(
            pixel.train_timesteps, BETA_START, BETA_END, pixel.beta_schedule, diffusion.zero_terminal_snr
        )
        with blamed_on("diffusion.prediction_type"):
            return GaussianDiffusion(abar, _predicts(settings), diffusion.max_timestep)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        return frozenset({"target", "degraded"} | GaussianMethod.noises(settings))

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        shape = {f"pixel.{name}": value for name, value in asdict(settings.pixel).items()}
        schedule = {"diffusion.zero_terminal_snr": settings.diffusion.zero_terminal_snr}
        return {"diffusion.prediction_type": _predicts(settings), **schedule, **shape}

    def denoiser(self, batch: Batch) -> Denoise:
        unet, condition = self.networks["unet"], self.degraded(batch)
        return lambda x_t, t: unet(torch.cat([condition, x_t], dim=1), t, return_dict=False)[0]

    def clean(self, batch: Batch) -> Tensor:
        return batch["target"]

    def degraded(self, batch: Batch) -> Tensor:
        return upsample(batch["degraded"], self.settings.pairs.scale)

    def decode(self, x0: Tensor) -> Tensor:
        return x0


def _predicts(settings: TrialSettings) -> PredictionType:
    """The prediction type: the velocity unless the settings say otherwise, because there is no base to follow."""
    found = settings.diffusion.prediction_type
    return "v_prediction" if found == "base" else found


def build_unet(settings: PixelSettings) -> UNet2DModel:
    """The conditional network, (B, 6, H, W) -> (B, 3, H, W), with random weights."""
    levels, attended = len(settings.channels), settings.attention_levels
    plain = ("DownBlock2D",) * (levels - attended), ("UpBlock2D",) * (levels - attended)
    return UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        down_block_types=plain[0] + ("AttnDownBlock2D",) * attended,
        up_block_types=("AttnUpBlock2D",) * attended + plain[1],
        norm_num_groups=settings.norm_groups,
    )
