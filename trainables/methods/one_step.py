"""One-step restoration with a pretrained base: its UNet sees the degraded image's latent at a fixed timestep.

Wu et al., "One-Step Effective Diffusion Network for Real-World Image Super-Resolution" (OSEDiff, NeurIPS 2024). A LoRA
and the first convolution adapt the UNet. The restored image is trained with L2, LPIPS, an optional adversarial term,
and optional variational score distillation against the base, for which a second LoRA learns the score of restored
latents. Nothing is random when restoring. Encoder, decoder and the (empty) prompt are those of the base.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from trainables.common.errors import InputError, blamed_on
from trainables.diffusion.gaussian import Denoise, GaussianDiffusion, full_timestep
from trainables.diffusion.one_step import distillation_loss, distillation_timesteps, score_loss
from trainables.methods.method import Batch, LossTerm, Method, Phase
from trainables.methods.shared.adversarial import check_discriminator, discriminator_loss, generator_loss
from trainables.methods.shared.perceptual_loss import PerceptualLoss
from trainables.networks.pix2pix import PatchGAN
from trainables.networks.stable_diffusion import add_lora
from trainables.pretrained.autoencoders import latent_shape, load_latents
from trainables.pretrained.base_model import find_base, load_empty_prompt, load_unet, read_shape
from trainables.pretrained.base_schedule import base_diffusion, zero_terminal_snr
from trainables.pretrained.identity import base_identity
from trainables.settings import DiffusionSettings, TrialSettings, reason_unread
from trainables.settings.checks import require

GAN_MODE = "hinge"


class OneStep(Method):
    """Terms: `l2` and `perceptual` of the restored image, `distillation` of its latent, `adversarial`; of the second
    LoRA `score`, of the discriminator `discriminator`.
    """

    pretrained = True
    adversaries = ("discriminator", "score")

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        folder = find_base(settings.base.weights, settings.base.revision)
        self.diffusion, self.autoencoder = _schedule(settings), load_latents(settings, device)
        self.prompt = load_empty_prompt(folder).to(device)
        self.perceptual = PerceptualLoss(settings.perceptual, device)
        unet = self._unet(settings.lora.rank)
        unet.conv_in.requires_grad_(settings.one_step.train_conv_in)
        self.size_multiple = latent_shape(settings).factor * 2 ** (len(unet.config.block_out_channels) - 1)
        networks: dict[str, nn.Module] = {"unet": unet}
        # The others only train, and two of them are as large as the base.
        if settings.training.max_steps and settings.one_step.distillation:
            networks["score"] = self._unet(settings.one_step.score_rank)
            self.base = load_unet(folder).to(device).requires_grad_(False)
        if settings.training.max_steps and settings.one_step.adversarial:
            adversary = settings.discriminator
            networks["discriminator"] = PatchGAN(in_channels=3, ndf=adversary.ndf, layers=adversary.layers)
        self.networks = nn.ModuleDict(networks).to(device)
        self._restored: list[Tensor] = []

    def _unet(self, rank: int) -> UNet2DConditionModel:
        """The base's UNet with a LoRA that starts at zero."""
        settings = self.settings
        unet = load_unet(find_base(settings.base.weights, settings.base.revision))
        if settings.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        with blamed_on(f"lora.targets={','.join(settings.lora.targets)}"):
            add_lora(unet, rank, settings.lora.scale * rank, settings.lora.targets, settings.lora.dropout)
        return unet

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        chosen, weights, terms = settings.one_step, settings.base.weights, settings.perceptual.weight
        require(settings.lora.rank > 0, "lora.rank", settings.lora.rank, "1 or more for one_step")
        require(not settings.lora.weights, "lora.weights", settings.lora.weights, "none for one_step")
        shape = read_shape(find_base(weights, settings.base.revision))
        last = shape.num_train_timesteps - 1
        require(chosen.timestep <= last, "one_step.timestep", chosen.timestep, f"0 to {last}, the last of the base's")
        if shape.in_channels != shape.latent_channels:
            raise InputError(
                f"base.weights={weights}: its UNet takes {shape.in_channels} channels, with a conditioning latent "
                f"already; one_step needs a base of {shape.latent_channels}"
            )
        _schedule(settings)
        if settings.training.max_steps:
            trains = chosen.l2 + terms + chosen.distillation + chosen.adversarial > 0
            require(trains, "one_step.l2", chosen.l2, "above 0, or another term above 0")
            if not reason_unread("discriminator.layers", settings):
                check_discriminator(settings)

    @property
    def phases(self) -> tuple[Phase, ...]:  # type: ignore[override]  # of the class where it is always the same
        """The discriminator before the UNet, as in Pix2Pix; the score after it, as in OSEDiff."""
        order = ("discriminator", "unet", "score")
        return tuple(Phase(name, (name,)) for name in order if name in self.networks)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        drawn = {"fresh_noise", "uniform", "jump_noise", "second_uniform"}
        return frozenset({"target", "latent_degraded"} | (drawn if settings.one_step.distillation else set()))

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        lora, folder = settings.lora, find_base(settings.base.weights, settings.base.revision)
        return {
            **base_identity(settings),
            "zero terminal SNR": zero_terminal_snr(folder, DiffusionSettings()),
            "one_step.timestep": settings.one_step.timestep,
            "one_step.train_conv_in": settings.one_step.train_conv_in,  # if not, it is not saved with the weights
            "lora.rank": lora.rank,
            "lora.scale": lora.scale,
            "lora.targets": lora.targets,
        }

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        chosen, target = self.settings.one_step, batch["target"]
        adversarial = "discriminator" in self.networks and step >= chosen.adversarial_start
        if phase.name == "score":
            t = (batch["second_uniform"] * self.diffusion.max_timestep).long()
            loss = score_loss(self.diffusion, self._denoiser("score"), self._restored.pop(0), t, batch["jump_noise"])
            return {"score": LossTerm(loss, 1.0)}
        if phase.name == "discriminator":
            if not adversarial:
                return {}
            with torch.no_grad():
                restored = self.autoencoder.decode(self._latents(batch)).clamp(-1, 1)
            discriminator = self.networks["discriminator"]
            loss = discriminator_loss(GAN_MODE, discriminator(target), discriminator(restored))
            return {"discriminator": LossTerm(loss, 1.0)}
        latents = self._latents(batch)
        restored = self.autoencoder.decode(latents).clamp(-1, 1)
        terms = {"l2": LossTerm(F.mse_loss(restored, target), chosen.l2)}
        if self.perceptual.due(step):
            terms["perceptual"] = self.perceptual(restored, target)
        if "score" in self.networks:
            self._restored.append(latents.detach())  # for the score's phase, part by part
            t = distillation_timesteps(self.diffusion, batch["uniform"])
            networks = self._denoiser("base"), self._denoiser("score")
            loss = distillation_loss(self.diffusion, *networks, latents, t, batch["fresh_noise"])
            terms["distillation"] = LossTerm(loss, chosen.distillation)
        if adversarial:
            loss = generator_loss(GAN_MODE, self.networks["discriminator"](restored))
            terms["adversarial"] = LossTerm(loss, chosen.adversarial)
        return terms

    def _denoiser(self, name: str) -> Denoise:
        unet = self.base if name == "base" else self.networks[name]

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            prompt = self.prompt.expand(len(x_t), -1, -1)
            output: Tensor = unet(x_t, t, encoder_hidden_states=prompt, return_dict=False)[0]
            return output

        return denoise

    def _latents(self, batch: Batch) -> Tensor:
        """Restored latents (B, C, h, w): the estimate of x_0 from the degraded ones."""
        degraded = batch["latent_degraded"]
        t = full_timestep(self.settings.one_step.timestep, degraded)
        return self.diffusion.predict_x0(self._denoiser("unet")(degraded, t), degraded, t)

    def restore(self, batch: Batch) -> Tensor:
        return self.autoencoder.decode(self._latents(batch)) * 0.5 + 0.5


def _schedule(settings: TrialSettings) -> GaussianDiffusion:
    """The base's schedule, with its own prediction type."""
    folder = find_base(settings.base.weights, settings.base.revision)
    steps = read_shape(folder).num_train_timesteps
    with blamed_on(f"base.weights={settings.base.weights}"):
        return base_diffusion(folder, DiffusionSettings(max_timestep=steps, inference_steps=1))
