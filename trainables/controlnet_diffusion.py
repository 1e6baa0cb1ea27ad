"""Latent diffusion conditioned through a ControlNet; the base UNet stays as it was pretrained.

Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (ICCV 2023), with diffusers'
`ControlNetModel`: a copy of the UNet's encoder sees the degraded image and adds its features to the UNet's through
convolutions that start at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.base_model import find_base, load_controlnet, load_empty_prompt, load_unet
from trainables.base_schedule import base_diffusion, base_identity, steps_offset
from trainables.data.tensors import upsample
from trainables.diffusion.gaussian import Denoise
from trainables.errors import InputError, blamed_on
from trainables.gaussian_method import GaussianMethod
from trainables.latents import latent_shape, load_latents
from trainables.method import Batch
from trainables.networks.stable_diffusion import check_controlnet, controlnet_from_unet
from trainables.settings import TrialSettings


class ControlNetDiffusion(GaussianMethod):
    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        folder = find_base(settings.base.weights, settings.base.revision)
        unet = load_unet(folder)
        if unet.config.in_channels != unet.config.out_channels:
            raise InputError(
                f"base.weights={folder}: its UNet takes {unet.config.in_channels} channels, a conditioning latent "
                f"already; ControlNet needs a base of {unet.config.out_channels}"
            )
        factor = latent_shape(settings).factor
        self.size_multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
        if settings.controlnet.weights:
            controlnet = load_controlnet(find_base(settings.controlnet.weights, setting="controlnet.weights"))
            with blamed_on(f"controlnet.weights={settings.controlnet.weights}"):
                check_controlnet(controlnet, unet, factor)
        else:
            with blamed_on("controlnet.embedding_channels"):
                controlnet = controlnet_from_unet(unet, 3, settings.controlnet.embedding_channels, factor)
        if settings.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            controlnet.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"controlnet": controlnet.to(device)})
        self.unet = unet.to(device).eval().requires_grad_(False)
        self.prompt = load_empty_prompt(folder).to(device)
        self.diffusion = base_diffusion(folder, settings.diffusion, frozen=True)
        self.steps_offset = steps_offset(folder)
        self.autoencoder = load_latents(settings, device)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        images = {"target"} if settings.perceptual.weight else set()
        return frozenset({"latent", "degraded"} | images | GaussianMethod.noises(settings))

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        return {
            **base_identity(settings),
            "diffusion.prediction_type": settings.diffusion.prediction_type,
            "controlnet.embedding_channels": settings.controlnet.embedding_channels,
        }

    def denoiser(self, batch: Batch) -> Denoise:
        controlnet, scale = self.networks["controlnet"], self.settings.controlnet.scale
        # ControlNet's conditioning images are in [0, 1].
        condition = upsample(batch["degraded"], self.settings.pairs.scale) * 0.5 + 0.5

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            prompt = self.prompt.expand(len(x_t), -1, -1)
            down, middle = controlnet(x_t, t, prompt, condition, conditioning_scale=scale, return_dict=False)
            output: Tensor = self.unet(
                x_t,
                t,
                prompt,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
            return output

        return denoise

    def clean(self, batch: Batch) -> Tensor:
        return batch["latent"]

    def degraded(self, batch: Batch) -> Tensor:
        return batch["latent_degraded"]

    def decode(self, x0: Tensor) -> Tensor:
        return self.autoencoder.decode(x0)
