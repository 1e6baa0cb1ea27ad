"""Conditional latent diffusion: a pretrained Stable Diffusion UNet that sees the degraded image's latent.

Ke et al., "Repurposing Diffusion-Based Image Generators for Monocular Depth Estimation" (Marigold, CVPR 2024): the
conditioning latent is concatenated to the noisy one, the prompt is empty. The UNet is adapted by LoRA (Hu et al., ICLR
2022) and its widened first convolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.base_model import find_base, load_empty_prompt, load_unet
from trainables.base_schedule import base_diffusion, base_identity, steps_offset
from trainables.diffusion.gaussian import Denoise
from trainables.errors import blamed_on
from trainables.gaussian_method import GaussianMethod
from trainables.latents import latent_shape, load_latents
from trainables.method import Batch
from trainables.networks.stable_diffusion import add_lora, load_lora_state_dict, predict, widen_conv_in
from trainables.settings import TrialSettings
from trainables.weights import read_safetensors


class LatentDiffusion(GaussianMethod):
    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        folder = find_base(settings.base.weights, settings.base.revision)
        unet, lora = load_unet(folder), settings.lora
        self.size_multiple = latent_shape(settings).factor * 2 ** (len(unet.config.block_out_channels) - 1)
        with blamed_on("conv_in.init"):
            widen_conv_in(unet, settings.conv_in.init)
        if lora.rank:
            with blamed_on("lora.targets"):
                add_lora(unet, lora.rank, lora.scale * lora.rank, lora.targets, lora.dropout)
        if lora.weights and not settings.checkpoint:
            with blamed_on(f"lora.weights={lora.weights}"):
                load_lora_state_dict(unet, read_safetensors(Path(lora.weights)))
        unet.conv_in.requires_grad_(not settings.conv_in.frozen)
        if settings.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"unet": unet.to(device)})
        self.prompt = load_empty_prompt(folder).to(device)
        self.diffusion = base_diffusion(folder, settings.diffusion)
        self.steps_offset = steps_offset(folder)
        self.autoencoder = load_latents(settings, device)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        images = {"target"} if settings.perceptual.weight else set()
        return frozenset({"latent", "latent_degraded"} | images | GaussianMethod.noises(settings))

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        lora, conv_in = settings.lora, settings.conv_in
        adapter = {"lora.rank": lora.rank, "lora.scale": lora.scale, "lora.targets": lora.targets}
        return {
            **base_identity(settings),
            "diffusion.prediction_type": settings.diffusion.prediction_type,
            # Frozen, it is not among the weights.
            "conv_in.frozen": conv_in.frozen,
            **({"conv_in.init": conv_in.init} if conv_in.frozen else {}),
            **(adapter if lora.rank else {"lora.rank": 0}),
        }

    def denoiser(self, batch: Batch) -> Denoise:
        unet, conditioning = self.networks["unet"], batch["latent_degraded"]
        return lambda x_t, t: predict(unet, conditioning, x_t, t, self.prompt)

    def clean(self, batch: Batch) -> Tensor:
        return batch["latent"]

    def degraded(self, batch: Batch) -> Tensor:
        return batch["latent_degraded"]

    def decode(self, x0: Tensor) -> Tensor:
        return self.autoencoder.decode(x0)
