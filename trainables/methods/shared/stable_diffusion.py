"""The base class of methods that start from a Stable Diffusion base and restore latents."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from trainables.common.errors import InputError
from trainables.diffusion.gaussian import Denoise, GaussianDiffusion
from trainables.diffusion.guidance import guided
from trainables.methods.method import Batch
from trainables.methods.shared.gaussian import GaussianMethod
from trainables.methods.shared.prompts import PromptedMethod
from trainables.pretrained.autoencoders import latent_shape, load_latents
from trainables.pretrained.base_model import find_base, load_unet
from trainables.pretrained.base_schedule import base_diffusion, steps_offset
from trainables.pretrained.prompts import require_prompts
from trainables.settings import TrialSettings


class StableDiffusionMethod(PromptedMethod, GaussianMethod):
    """Gaussian diffusion of a base's latents, with its autoencoder, prompts and noise schedule.

    Attributes:
        frozen_unet: whether the base's UNet is not trained, so that its prediction type cannot change.
    """

    pretrained = True
    frozen_unet: ClassVar[bool] = False

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.autoencoder = load_latents(settings, device)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        images = {"target"} if settings.perceptual.weight else set()
        drawn = GaussianMethod.noises(settings) | PromptedMethod.prompt_columns(settings)
        return frozenset({"latent", "latent_degraded"} | images | drawn)

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        super().check(settings)
        require_prompts(settings, "diffusion.guidance", settings.diffusion.guidance, 1.0)

    @abstractmethod
    def prompted(self, batch: Batch, prompt: Tensor) -> Denoise:
        """The network with the batch's conditioning and a prompt, (1 or B, tokens, dim)."""

    def denoiser(self, batch: Batch) -> Denoise:
        return self.prompted(batch, self.prompt_of(batch))

    def guided(self, batch: Batch) -> Denoise:
        scale, positive = self.settings.diffusion.guidance, self.denoiser(batch)
        return positive if scale == 1 else guided(positive, self.prompted(batch, self.prompts.negative), scale)

    def load_base_unet(self) -> UNet2DConditionModel:
        """The base's UNet, on the CPU; sets the method's `size_multiple`.

        Raises:
            InputError: the UNet is to stay as it is, but takes a conditioning latent.
        """
        base = self.settings.base
        unet = load_unet(find_base(base.weights, base.revision))
        if self.frozen_unet and unet.config.in_channels != unet.config.out_channels:
            raise InputError(
                f"base.weights={base.weights}: its UNet takes {unet.config.in_channels} channels, with a conditioning "
                f"latent already; {self.settings.method} needs a base of {unet.config.out_channels}"
            )
        self.size_multiple = latent_shape(self.settings).factor * 2 ** (len(unet.config.block_out_channels) - 1)
        if self.settings.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return unet

    @classmethod
    def schedule(cls, settings: TrialSettings) -> GaussianDiffusion:
        folder = find_base(settings.base.weights, settings.base.revision)
        return base_diffusion(folder, settings.diffusion, cls.frozen_unet)

    @classmethod
    def leading_offset(cls, settings: TrialSettings) -> int:
        return steps_offset(find_base(settings.base.weights, settings.base.revision))

    def clean(self, batch: Batch) -> Tensor:
        return batch["latent"]

    def degraded(self, batch: Batch) -> Tensor:
        return batch["latent_degraded"]

    def decode(self, x0: Tensor) -> Tensor:
        return self.autoencoder.decode(x0)
