"""CCSR: sampling only between two timesteps, and a decoder that is trained to add the missing detail.

Sun et al., "Improving the Stability and Efficiency of Diffusion Models for Content Consistent Super-Resolution" (arXiv
2401.00877). This is its second stage. The first stage is a finished diffusion model, officially a ControlNet on
latents, sampled by `trainables.diffusion.ccsr.sample_truncated`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from trainables.common.errors import InputError, blamed_on
from trainables.diffusion.ccsr import truncated_timesteps
from trainables.methods.controlnet_diffusion import ControlNetDiffusion
from trainables.methods.latent_diffusion import LatentDiffusion
from trainables.methods.shared.decoder import DecoderMethod
from trainables.methods.shared.first_stage import first_stage_settings
from trainables.pretrained.identity import base_fingerprint
from trainables.settings import TrialSettings


class CCSR(DecoderMethod):
    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.adversarial = settings.ccsr.adversarial, settings.ccsr.adversarial_start
        self.last_layer = self.networks["decoder"].get_parameter("1.conv_out.weight")

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        super().check(settings)
        ccsr, first = settings.ccsr, first_stage_settings(settings)
        try:
            kind = ControlNetDiffusion if first.method == "controlnet_diffusion" else LatentDiffusion
            chain = kind.schedule(first)
        except InputError as error:
            raise InputError(f"first_stage.weights={settings.first_stage.weights}: {error}") from None
        with blamed_on(f"ccsr.steps={ccsr.steps}, ccsr.t_max={ccsr.t_max}, ccsr.t_min={ccsr.t_min}"):
            truncated_timesteps(chain, ccsr.steps, ccsr.t_max, ccsr.t_min)

    def build_decoder(self) -> nn.Module:
        into = self.vae.post_quant_conv if self.vae.post_quant_conv is not None else nn.Identity()
        return copy.deepcopy(nn.Sequential(into, self.vae.decoder)).requires_grad_(True)

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        return frozenset({"target", "degraded", "restored"})

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        return {"base": base_fingerprint(settings, "vae")}

    def decode(self, latents: Tensor, degraded: Tensor, strength: float) -> Tensor:
        decoded: Tensor = self.networks["decoder"](latents / self.scaling)
        return decoded
