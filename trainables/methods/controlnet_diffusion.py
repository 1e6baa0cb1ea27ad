"""Latent diffusion conditioned through a ControlNet; the base UNet is not trained.

Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (ICCV 2023), with diffusers'
`ControlNetModel`: a copy of the UNet's encoder sees the degraded image, or its latent, and adds its features to the
UNet's through convolutions that start at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.common.errors import blamed_on
from trainables.diffusion.gaussian import Denoise
from trainables.images.tensors import upsample
from trainables.methods.method import Batch
from trainables.methods.shared.stable_diffusion import StableDiffusionMethod
from trainables.networks.stable_diffusion import check_controlnet, controlnet_from_unet, controlnet_on_latents
from trainables.pretrained.autoencoders import latent_shape
from trainables.pretrained.base_model import find_base, load_controlnet
from trainables.pretrained.identity import base_identity
from trainables.settings import TrialSettings


class ControlNetDiffusion(StableDiffusionMethod):
    frozen_unet = True

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        unet = self.load_base_unet()
        factor = latent_shape(settings).factor
        if settings.controlnet.weights:
            pretrained = settings.controlnet
            found = find_base(pretrained.weights, pretrained.revision, setting="controlnet.weights")
            controlnet = load_controlnet(found)
            with blamed_on(f"controlnet.weights={pretrained.weights}"):
                check_controlnet(controlnet, unet, factor)
        elif settings.controlnet.condition == "latent":
            controlnet = controlnet_on_latents(unet, latent_shape(settings).channels)
        else:
            with blamed_on("controlnet.embedding_channels"):
                controlnet = controlnet_from_unet(unet, 3, settings.controlnet.embedding_channels, factor)
        if settings.training.gradient_checkpointing:
            controlnet.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"controlnet": controlnet.to(device)})
        self.unet = unet.to(device).eval().requires_grad_(False)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        found = StableDiffusionMethod.columns(settings)
        return found if settings.controlnet.condition == "latent" else found - {"latent_degraded"} | {"degraded"}

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        condition = settings.controlnet.condition
        seen = {"controlnet.embedding_channels": settings.controlnet.embedding_channels}
        return {
            **base_identity(settings),
            "diffusion.prediction_type": settings.diffusion.prediction_type,
            **(seen if condition == "image" else {"controlnet.condition": condition}),
        }

    def prompted(self, batch: Batch, prompt: Tensor) -> Denoise:
        controlnet, scale = self.networks["controlnet"], self.settings.controlnet.scale
        if self.settings.controlnet.condition == "latent":
            condition = batch["latent_degraded"]
        else:  # ControlNet's conditioning images are in [0, 1].
            condition = upsample(batch["degraded"], self.settings.pairs.scale) * 0.5 + 0.5

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            attended = prompt.expand(len(x_t), -1, -1)
            down, middle = controlnet(x_t, t, attended, condition, conditioning_scale=scale, return_dict=False)
            # As in the official code, gradients reach an estimated state through the ControlNet alone. Only the jump of
            # CCSR's objective has such a state.
            output: Tensor = self.unet(
                x_t.detach(),
                t,
                attended,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
            return output

        return denoise
