"""ResShift: the multi-step teacher, trained with its published objective.

Yue et al., "ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting" (NeurIPS 2023), and
the LPIPS term of its journal version, "Efficient Diffusion Model for Image Restoration by Residual Shifting" (2024).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.diffusion.noise import step_noise
from trainables.diffusion.resshift import per_sample_mse
from trainables.methods.method import Batch, LossTerm, Method, Phase
from trainables.methods.shared.perceptual_loss import PerceptualLoss
from trainables.networks.autoencoder import decode
from trainables.pretrained.autoencoders import load_latents
from trainables.pretrained.identity import resshift_identity
from trainables.pretrained.resshift import build_diffusion, build_network, load_official_swin_unet
from trainables.settings import PerceptualSettings, TrialSettings
from trainables.settings.checks import require


class ResShift(Method):
    phases: ClassVar[tuple[Phase, ...]] = (Phase("denoiser", ("denoiser",)),)

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        denoiser = build_network(settings.network, settings.training.gradient_checkpointing)
        self.networks = nn.ModuleDict({"denoiser": denoiser.to(device)})
        self.diffusion = build_diffusion(settings.resshift)
        self.autoencoder = load_latents(settings, device)
        self.lpips = PerceptualLoss(
            PerceptualSettings(weight=settings.resshift_loss.lpips, network=settings.resshift_loss.network), device
        )
        self.size_multiple = settings.autoencoder.factor * denoiser.size_multiple

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        loss = settings.resshift_loss
        trains = loss.mse + loss.lpips > 0 or not settings.training.max_steps
        require(trains, "resshift_loss.mse", loss.mse, "above 0 if resshift_loss.lpips is 0")

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        images = {"target"} if settings.resshift_loss.lpips else set()
        return frozenset({"degraded", "latent", "latent_degraded", "fresh_noise", "uniform"} | images)

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        return resshift_identity(settings)

    def load_public(self, path: Path) -> None:
        load_official_swin_unet(self.networks["denoiser"], path)  # type: ignore[arg-type]

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        denoiser, degraded = self.networks["denoiser"], batch["degraded"]
        t = (batch["uniform"] * self.diffusion.steps).long()
        estimate = self.diffusion.predict_x0(
            lambda x, t: denoiser(x, t, lq=degraded),
            batch["latent"],
            batch["latent_degraded"],
            t,
            batch["fresh_noise"],
        )
        terms = {}
        if weight := self.settings.resshift_loss.mse:
            terms["mse"] = LossTerm(per_sample_mse(estimate, batch["latent"]).mean(), weight)
        if self.lpips.due(step):
            # Gradients pass the quantisation as if it were the identity, as in the official code.
            restored = decode(self.autoencoder.network, estimate, straight_through=True)
            terms["lpips"] = self.lpips(restored.clamp(-1, 1), batch["target"])
        return terms

    def restore(self, batch: Batch) -> Tensor:
        denoiser, degraded = self.networks["denoiser"], batch["degraded"]
        y, noise = batch["latent_degraded"], batch["noise"]

        def predict_x0(x: Tensor, t: Tensor) -> Tensor:
            estimate: Tensor = denoiser(x, t, lq=degraded)
            return estimate

        if self.settings.resshift.sampler == "ancestral":
            fresh = step_noise(batch["noise_key"].tolist(), y)
            latent = self.diffusion.sample_ancestral(predict_x0, y, noise, fresh)
        else:
            latent = self.diffusion.sample_ddim(predict_x0, y, noise)
        return self.autoencoder.decode(latent) * 0.5 + 0.5
