"""The base class of methods that train a decoder on the latents of a finished diffusion model.

The terms are those of VQGAN's decoder (Esser et al., CVPR 2021): L1, perceptual, and an adversarial one, which may be
balanced with the two others by gradient norms at the last layer.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.methods.method import Batch, LossTerm, Method, Phase
from trainables.methods.shared.adversarial import (
    GAN_MODE,
    adaptive_weight,
    check_discriminator,
    discriminator_loss,
    generator_loss,
)
from trainables.methods.shared.first_stage import FirstStage, first_stage_settings
from trainables.methods.shared.perceptual_loss import PerceptualLoss
from trainables.networks.pix2pix import PatchGAN
from trainables.pretrained.base_model import find_base, load_vae, read_shape
from trainables.pretrained.prompts import check_prompts
from trainables.settings import TrialSettings, reason_unread


class DecoderMethod(Method):
    """A decoder, trained against a discriminator of patches. In each step the decoder trains first, as in the official
    code of StableSR and CCSR; the discriminator then sees its new output.

    The first stage is frozen: training reads its prepared latents, validation samples it.

    Attributes:
        adversarial: weight of the adversarial term, and its first step; set by the method.
        last_layer: the weight at which the terms are balanced; None for no balancing.
    """

    pretrained = True
    phases: ClassVar[tuple[Phase, ...]] = (
        Phase("decoder", ("decoder",)),
        Phase("discriminator", ("discriminator",)),
    )
    adversaries = ("discriminator",)
    adversarial: tuple[float, int]
    last_layer: nn.Parameter | None = None

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        folder = find_base(settings.base.weights, settings.base.revision)
        self.vae = load_vae(folder).to(device).eval().requires_grad_(False)
        if settings.training.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.scaling = read_shape(folder).scaling_factor
        self.first_stage = FirstStage(settings, device)
        self.size_multiple = self.first_stage.method.size_multiple
        self.perceptual = PerceptualLoss(settings.perceptual, device)
        adversary = settings.discriminator
        discriminator = PatchGAN(in_channels=3, ndf=adversary.ndf, layers=adversary.layers)
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self.networks = nn.ModuleDict({"decoder": self.build_decoder(), "discriminator": discriminator}).to(device)

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        check_prompts(first_stage_settings(settings))
        if not reason_unread("discriminator.layers", settings):
            check_discriminator(settings)

    @property
    def resident_bytes(self) -> int:
        return super().resident_bytes + self.first_stage.method.resident_bytes

    @abstractmethod
    def build_decoder(self) -> nn.Module:
        """The trained network besides the discriminator."""

    @abstractmethod
    def decode(self, latents: Tensor, degraded: Tensor, strength: float) -> Tensor:
        """Restored images in about [-1, 1].

        Args:
            latents: of the first stage, scaled as its diffusion model uses them.
            degraded: the degraded images, at their own size.
            strength: in [0, 1], of the change to the autoencoder's own decoder.
        """

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        (weight, start), discriminator, target = self.adversarial, self.networks["discriminator"], batch["target"]
        adversarial = weight > 0 and step >= start
        if phase.name == "discriminator" and not adversarial:
            return {}
        with torch.set_grad_enabled(phase.name == "decoder"):
            restored = self.decode(batch["restored"], batch["degraded"], 1.0)
        if phase.name == "discriminator":
            loss = discriminator_loss(GAN_MODE, discriminator(target), discriminator(restored))
            return {"discriminator": LossTerm(loss, 1.0)}
        terms = {"l1": LossTerm(F.l1_loss(restored, target), 1.0)}
        if self.perceptual.due(step):
            terms["perceptual"] = self.perceptual(restored, target)
        if adversarial:
            reconstruction = torch.stack([term.value * term.weight for term in terms.values()]).sum()
            loss = generator_loss(GAN_MODE, discriminator(restored))
            balance = 1.0 if self.last_layer is None else adaptive_weight(reconstruction, loss, self.last_layer)
            terms["adversarial"] = LossTerm(loss, weight * balance)
        return terms

    def restore(self, batch: Batch) -> Tensor:
        return self.decode(self._restored(batch), batch["degraded"], self.strength) * 0.5 + 0.5

    def _restored(self, batch: Batch) -> Tensor:
        """The first stage's latents of a validation batch.

        A trial that trains restores them once and keeps them on the CPU, because the first stage is frozen: as many
        bytes as the prepared latents in 32 bits.
        """
        latents, noise, keys = batch["latent_degraded"], batch["noise"], batch["noise_key"].tolist()
        if not self.settings.training.max_steps:
            return self.first_stage(latents, noise, keys)
        names = [tuple(key) for key in keys]
        if any(name not in self._kept for name in names):
            self._kept.update(zip(names, self.first_stage(latents, noise, keys).cpu(), strict=True))
        return torch.stack([self._kept[name] for name in names]).to(latents.device)

    @property
    def strength(self) -> float:
        """The strength at which images are restored."""
        return 1.0
