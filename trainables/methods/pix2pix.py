"""Pix2Pix: a U-Net that maps the degraded image to the restored one, trained against a discriminator of patches.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (CVPR 2017), with an optional
perceptual term. In each step the discriminator trains first, on the generator's current output. For the generator's
phase the generator runs again, where the official code reuses that output: so dropout draws new masks, and running
statistics are updated twice with the same batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.common.errors import InputError
from trainables.images.tensors import upsample
from trainables.methods.method import Batch, LossTerm, Method, Phase
from trainables.methods.shared.adversarial import check_discriminator, discriminator_loss, generator_loss
from trainables.methods.shared.perceptual_loss import PerceptualLoss
from trainables.networks.pix2pix import PatchGAN, UNetGenerator, load_pix2pix
from trainables.pretrained.identity import unequal
from trainables.settings import TrialSettings


class Pix2Pix(Method):
    phases: ClassVar[tuple[Phase, ...]] = (
        Phase("discriminator", ("discriminator",)),
        Phase("generator", ("generator",)),
    )
    adversaries = ("discriminator",)

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        s = settings.pix2pix
        generator = UNetGenerator(downs=s.downs, ngf=s.ngf, norm=s.norm, dropout=s.dropout)
        adversary = settings.discriminator
        discriminator = PatchGAN(ndf=adversary.ndf, layers=adversary.layers, norm=s.norm)
        self.networks = nn.ModuleDict({"generator": generator, "discriminator": discriminator}).to(device)
        self.size_multiple = generator.size_multiple
        self.perceptual = PerceptualLoss(settings.perceptual, device)

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        downs, size = settings.pix2pix.downs, settings.pairs.image_size
        halvings = (size & -size).bit_length() - 1
        if 5 <= halvings < downs:  # with fewer than 5, the image size is refused, as for any method
            raise InputError(f"pix2pix.downs={downs}: expected 5 to {halvings} for pairs.image_size={size}")
        if settings.training.max_steps:
            check_discriminator(settings)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        return frozenset({"target", "degraded"})

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        return {f"pix2pix.{name}": getattr(settings.pix2pix, name) for name in ("ngf", "downs", "norm")}

    def load_public(self, path: Path) -> None:
        """The generator of pytorch-CycleGAN-and-pix2pix (`latest_net_G.pth`); the discriminator starts with random
        weights.

        Raises:
            InputError: its shape differs from the settings.
        """
        loaded = load_pix2pix(path)
        theirs = {name: getattr(loaded, name.partition(".")[2]) for name in self.architecture(self.settings)}
        if difference := unequal(theirs, self.architecture(self.settings)):
            raise InputError(f"checkpoint={path}: {difference}")
        self.networks["generator"].load_state_dict(loaded.state_dict())

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        s, target, condition = self.settings.pix2pix, batch["target"], self._condition(batch)
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        with torch.set_grad_enabled(phase.name == "generator"):
            restored = generator(condition)
        fake = discriminator(torch.cat([condition, restored], dim=1))
        if phase.name == "discriminator":
            real = discriminator(torch.cat([condition, target], dim=1))
            return {"discriminator": LossTerm(discriminator_loss(s.gan_mode, real, fake), 1.0)}
        terms = {
            "adversarial": LossTerm(generator_loss(s.gan_mode, fake), s.adversarial),
            "l1": LossTerm(F.l1_loss(restored, target), s.l1),
        }
        if self.perceptual.due(step):
            terms["perceptual"] = self.perceptual(restored, target)
        return terms

    def restore(self, batch: Batch) -> Tensor:
        restored: Tensor = self.networks["generator"](self._condition(batch))
        return restored * 0.5 + 0.5

    def _condition(self, batch: Batch) -> Tensor:
        return upsample(batch["degraded"], self.settings.pairs.scale)
