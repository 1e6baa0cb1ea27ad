"""SinSR: a one-step student of a ResShift teacher.

Wang et al., "SinSR: Diffusion-Based Image Super-Resolution in a Single Step" (CVPR 2024). The student starts as a copy
of the teacher. From pairs (x_T, x_0) of the teacher's deterministic sampler it learns to map one to the other in one
step, in both directions. The terms are in `trainables.diffusion.sinsr`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.diffusion.sinsr import sinsr_terms
from trainables.images.tensors import upsample
from trainables.methods.method import Batch, LossTerm, Method, Phase
from trainables.pretrained.autoencoders import load_latents
from trainables.pretrained.identity import resshift_identity
from trainables.pretrained.resshift import (
    build_diffusion,
    build_network,
    load_official_swin_unet,
    load_teacher,
    load_teacher_weights,
)
from trainables.settings import TrialSettings


class SinSR(Method):
    pretrained = True
    phases: ClassVar[tuple[Phase, ...]] = (Phase("student", ("student",)),)

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        student = build_network(settings.network, settings.training.gradient_checkpointing)
        if not settings.checkpoint:
            load_teacher_weights(student, settings)
        self.networks = nn.ModuleDict({"student": student.to(device)})
        self.diffusion = build_diffusion(settings.resshift)
        self.autoencoder = load_latents(settings, device)
        self.size_multiple = settings.autoencoder.factor * student.size_multiple
        self.teacher = None
        if settings.sinsr.teaching == "online" and settings.sinsr.teaches:
            self.teacher = load_teacher(settings, device)
        self.weights = {name: weight for name, weight in settings.sinsr.weights.items() if weight > 0}

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        teaches = settings.sinsr.teaches
        if settings.sinsr.teaching == "online":
            return frozenset({"target", "degraded", *(["fresh_noise"] if teaches else [])})
        return frozenset({"degraded", "latent", *(["latent_degraded", "noise", "taught"] if teaches else [])})

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        return resshift_identity(settings)

    def load_public(self, path: Path) -> None:
        load_official_swin_unet(self.networks["student"], path)  # type: ignore[arg-type]

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        if self.settings.sinsr.teaching == "online":
            batch = self._online(batch)
        x_T = None
        if self.settings.sinsr.teaches:
            x_T = self.diffusion.prior_sample(batch["latent_degraded"], batch["noise"])
        terms = sinsr_terms(
            self.networks["student"],
            self.diffusion,
            batch["degraded"],
            batch["latent"],
            x_T,
            batch.get("taught"),
            terms=self.weights,
        )
        return {name: LossTerm(term.mean(), self.weights[name]) for name, term in terms.items()}

    @torch.no_grad()
    def _online(self, batch: Batch) -> Batch:
        """The columns of this batch that a store would contain, from new noise in every step."""
        teacher, degraded = self.teacher, batch["degraded"]
        found = {"degraded": degraded, "latent": self.autoencoder.encode(batch["target"])}
        if teacher is None:
            return found
        noise, y = batch["fresh_noise"], self.autoencoder.encode(upsample(degraded, self.settings.pairs.scale))
        return found | {
            "latent_degraded": y,
            "noise": noise,
            "taught": self.diffusion.sample_ddim(lambda x, t: teacher(x, t, lq=degraded), y, noise),
        }

    def restore(self, batch: Batch) -> Tensor:
        student, degraded = self.networks["student"], batch["degraded"]
        latent = self.diffusion.predict_from_prior(
            lambda x, t: student(x, t, lq=degraded), batch["latent_degraded"], batch["noise"]
        )
        return self.autoencoder.decode(latent) * 0.5 + 0.5
