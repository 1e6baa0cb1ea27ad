"""One-step restoration with a pretrained base: its UNet sees the degraded image's latent at a fixed timestep.

Wu et al., "One-Step Effective Diffusion Network for Real-World Image Super-Resolution" (OSEDiff, NeurIPS 2024). A LoRA
and the first convolution adapt the UNet. The restored image is trained with L2, LPIPS, an optional adversarial term,
and optional variational score distillation against the base, for which a second LoRA learns the score of restored
latents. Nothing is random when restoring. Encoder and decoder are those of the base, and so is the (empty) prompt,
unless `base.prompts` has another. Classifier score distillation against two prompts needs no LoRA that learns a score.

L2 may compare latents instead of images, as in Dong et al., "TSD-SR: One-Step Diffusion with Target Score Distillation
for Real-World Image Super-Resolution" (CVPR 2025). Then a step without a term of the image decodes nothing.

With `one_step.dual`: Sun et al., "Pixel-level and Semantic-level Adjustable Super-resolution: A Dual-LoRA Approach"
(PiSA-SR, CVPR 2025). A pixel LoRA is trained with L2 alone, then a semantic LoRA on top of it with all terms. Their
scales can be changed when restoring: z_H = z_L - l_pix * e_pix - l_sem * (e_both - e_pix), where z_L is the degraded
latent and e the UNet's output, without and with the semantic LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from trainables.common.errors import InputError, blamed_on
from trainables.diffusion.gaussian import Denoise, GaussianDiffusion, full_timestep
from trainables.diffusion.guidance import guided
from trainables.diffusion.one_step import (
    CLASSIFIER_LAST,
    classifier_distillation_loss,
    distillation_loss,
    distillation_timesteps,
    score_loss,
)
from trainables.methods.method import Batch, LossTerm, Phase
from trainables.methods.shared.adversarial import GAN_MODE, check_discriminator, discriminator_loss, generator_loss
from trainables.methods.shared.perceptual_loss import PerceptualLoss
from trainables.methods.shared.prompts import PromptedMethod
from trainables.networks.pix2pix import PatchGAN
from trainables.networks.stable_diffusion import SECOND_LORA, add_lora, use_second_lora
from trainables.pretrained.autoencoders import latent_shape, load_latents
from trainables.pretrained.base_model import find_base, load_unet, read_shape
from trainables.pretrained.base_schedule import base_diffusion, zero_terminal_snr
from trainables.pretrained.identity import base_identity
from trainables.pretrained.prompts import require_prompts
from trainables.settings import DiffusionSettings, TrialSettings, reason_unread
from trainables.settings.checks import require

PIXEL, SEMANTIC = "pixel", "semantic"
"""The phases of the UNet with two LoRAs."""


class OneStep(PromptedMethod):
    """Terms: `l2`, `perceptual` and `adversarial` of the restored image, `latent_l2`, `distillation` and
    `classifier_distillation` of its latent; of the LoRA that learns its score `score`, of the discriminator
    `discriminator`. With `one_step.dual` they begin after the steps of the pixel LoRA, whose only term is `pixel_l2`.
    """

    pretrained = True
    adversaries = ("discriminator", "score")

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        folder = find_base(settings.base.weights, settings.base.revision)
        self.diffusion, self.autoencoder = _schedule(settings), load_latents(settings, device)
        self.perceptual = PerceptualLoss(settings.perceptual, device)
        unet = self._unet(settings.lora.rank)
        if settings.one_step.dual:
            self._adapt(unet, settings.one_step.semantic_rank, second=True)
        unet.conv_in.requires_grad_(settings.one_step.train_conv_in)
        self.size_multiple = latent_shape(settings).factor * 2 ** (len(unet.config.block_out_channels) - 1)
        networks: dict[str, nn.Module] = {"unet": unet}
        # The others only train, and two of them are as large as the base.
        distils = settings.one_step.distillation or settings.one_step.classifier_distillation
        if settings.training.max_steps and settings.one_step.distillation:
            networks["score"] = self._unet(settings.one_step.score_rank)
        if settings.training.max_steps and distils:
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
        self._adapt(unet, rank)
        return unet

    def _adapt(self, unet: UNet2DConditionModel, rank: int, second: bool = False) -> None:
        lora = self.settings.lora
        with blamed_on(f"lora.targets={','.join(lora.targets)}"):
            add_lora(unet, rank, lora.scale * rank, lora.targets, lora.dropout, second)

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        super().check(settings)
        chosen, weights = settings.one_step, settings.base.weights
        distillation = chosen.distillation + chosen.classifier_distillation
        require_prompts(settings, "one_step.guidance", chosen.guidance, 1.0)
        require_prompts(settings, "one_step.classifier_distillation", chosen.classifier_distillation, 0.0)
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
            images = chosen.l2 + settings.perceptual.weight + chosen.adversarial
            trains = images + chosen.latent_l2 + distillation > 0
            require(trains, "one_step.l2", chosen.l2, "above 0, or another term above 0")
            if chosen.dual:
                require(chosen.l2 > 0, "one_step.l2", chosen.l2, "above 0: it trains the pixel LoRA of one_step.dual")
                steps = settings.training.max_steps
                fewer = f"1 to {steps - 1}, below training.max_steps, so that the semantic LoRA trains too"
                require(chosen.pixel_steps < steps, "one_step.pixel_steps", chosen.pixel_steps, fewer)
            if not reason_unread("discriminator.layers", settings):
                check_discriminator(settings)

    @property
    def phases(self) -> tuple[Phase, ...]:  # type: ignore[override]  # of the class where it is always the same
        """The discriminator before the UNet, as in Pix2Pix; the score after it, as in OSEDiff."""
        unet = (PIXEL, SEMANTIC) if self.settings.one_step.dual else ("unet",)
        order = {"discriminator": "discriminator", **dict.fromkeys(unet, "unet"), "score": "score"}
        return tuple(Phase(name, (network,)) for name, network in order.items() if network in self.networks)

    def updated(self, phase: Phase) -> dict[str, nn.Parameter]:
        found = super().updated(phase)
        if phase.name not in (PIXEL, SEMANTIC):
            return found
        semantic = phase.name == SEMANTIC
        return {name: parameter for name, parameter in found.items() if (f".{SECOND_LORA}." in name) == semantic}

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        chosen, drawn = settings.one_step, PromptedMethod.prompt_columns(settings)
        if chosen.distillation or chosen.classifier_distillation:
            drawn |= {"fresh_noise", "uniform"}
        if chosen.distillation:
            drawn |= {"jump_noise", "second_uniform"}
        if chosen.latent_l2:
            drawn |= {"latent"}
        return frozenset({"target", "latent_degraded"} | drawn)

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        lora, folder = settings.lora, find_base(settings.base.weights, settings.base.revision)
        dual = {"one_step.dual": True, "one_step.semantic_rank": settings.one_step.semantic_rank}
        return {
            **base_identity(settings),
            "zero terminal SNR": zero_terminal_snr(folder, DiffusionSettings()),
            "one_step.timestep": settings.one_step.timestep,
            "one_step.train_conv_in": settings.one_step.train_conv_in,  # if not, it is not saved with the weights
            "lora.rank": lora.rank,
            "lora.scale": lora.scale,
            "lora.targets": lora.targets,
            **(dual if settings.one_step.dual else {}),  # older files do not say it
        }

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        chosen, target = self.settings.one_step, batch["target"]
        if phase.name == PIXEL:
            return self._pixel_terms(batch) if step < chosen.pixel_steps else {}
        if chosen.dual and step < chosen.pixel_steps:
            return {}
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
        terms = self._image_terms(latents, target, step, adversarial)
        if chosen.latent_l2:
            terms["latent_l2"] = LossTerm(F.mse_loss(latents, batch["latent"]), chosen.latent_l2)
        if "score" in self.networks:
            self._restored.append(latents.detach())  # for the score's phase, part by part
            t = distillation_timesteps(self.diffusion, batch["uniform"])
            networks = self._guided_base(), self._denoiser("score")
            loss = distillation_loss(self.diffusion, *networks, latents, t, batch["fresh_noise"])
            terms["distillation"] = LossTerm(loss, chosen.distillation)
        if chosen.classifier_distillation:
            t = distillation_timesteps(self.diffusion, batch["uniform"], CLASSIFIER_LAST)
            prompted = self._denoiser("base"), self._denoiser("base", self.prompts.negative)
            loss = classifier_distillation_loss(
                self.diffusion, *prompted, chosen.guidance, latents, t, batch["fresh_noise"]
            )
            terms["classifier_distillation"] = LossTerm(loss, chosen.classifier_distillation)
        return terms

    def _image_terms(self, latents: Tensor, target: Tensor, step: int, adversarial: bool) -> dict[str, LossTerm]:
        """The terms of the restored image in this step. Nothing is decoded if there are none."""
        chosen, perceptual = self.settings.one_step, self.perceptual.due(step)
        if not (chosen.l2 or perceptual or adversarial):
            return {}
        restored, terms = self.autoencoder.decode(latents).clamp(-1, 1), dict[str, LossTerm]()
        if chosen.l2:
            terms["l2"] = LossTerm(F.mse_loss(restored, target), chosen.l2)
        if perceptual:
            terms["perceptual"] = self.perceptual(restored, target)
        if adversarial:
            loss = generator_loss(GAN_MODE, self.networks["discriminator"](restored))
            terms["adversarial"] = LossTerm(loss, chosen.adversarial)
        return terms

    def _denoiser(self, name: str, prompt: Tensor | None = None) -> Denoise:
        """A network with a prompt, (1 or B, tokens, dim); None for the positive one."""
        unet = self.base if name == "base" else self.networks[name]
        given = self.prompts.positive if prompt is None else prompt

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            attended = given.expand(len(x_t), -1, -1)
            output: Tensor = unet(x_t, t, encoder_hidden_states=attended, return_dict=False)[0]
            return output

        return denoise

    def _guided_base(self) -> Denoise:
        positive, scale = self._denoiser("base"), self.settings.one_step.guidance
        return positive if scale == 1 else guided(positive, self._denoiser("base", self.prompts.negative), scale)

    def _pixel_terms(self, batch: Batch) -> dict[str, LossTerm]:
        restored = self.autoencoder.decode(self._latents(batch, semantic=False)).clamp(-1, 1)
        return {"pixel_l2": LossTerm(F.mse_loss(restored, batch["target"]), self.settings.one_step.l2)}

    def _output(self, batch: Batch, semantic: bool = True) -> Tensor:
        """The UNet's output for degraded latents. semantic: with the semantic LoRA, if there is one."""
        degraded = batch["latent_degraded"]
        if self.settings.one_step.dual:
            use_second_lora(self.networks["unet"], semantic)
        denoise = self._denoiser("unet", self.prompt_of(batch))
        return denoise(degraded, full_timestep(self.settings.one_step.timestep, degraded))

    def _latents(self, batch: Batch, semantic: bool = True) -> Tensor:
        """Restored latents (B, C, h, w), as in training: the estimate of x_0 from the degraded ones, or these minus the
        residual.
        """
        degraded = batch["latent_degraded"]
        output = self._output(batch, semantic)
        if self.settings.one_step.dual:
            return degraded - output
        return self.diffusion.predict_x0(output, degraded, full_timestep(self.settings.one_step.timestep, degraded))

    def _adjusted(self, batch: Batch) -> Tensor:
        """Restored latents with the scales of both LoRAs. Runs the UNet only for outputs that have a weight."""
        restored, chosen = batch["latent_degraded"], self.settings.one_step
        for semantic, weight in ((False, chosen.pixel_scale - chosen.semantic_scale), (True, chosen.semantic_scale)):
            if weight:
                restored = restored - weight * self._output(batch, semantic)
        return restored

    def restore(self, batch: Batch) -> Tensor:
        latents = self._adjusted(batch) if self.settings.one_step.dual else self._latents(batch)
        return self.autoencoder.decode(latents) * 0.5 + 0.5


def _schedule(settings: TrialSettings) -> GaussianDiffusion:
    """The base's schedule, with its own prediction type."""
    folder = find_base(settings.base.weights, settings.base.revision)
    steps = read_shape(folder).num_train_timesteps
    with blamed_on(f"base.weights={settings.base.weights}"):
        return base_diffusion(folder, DiffusionSettings(max_timestep=steps, inference_steps=1))
