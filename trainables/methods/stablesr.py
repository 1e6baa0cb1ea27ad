"""StableSR's first stage: a time-aware encoder of the degraded latent modulates the features of a frozen UNet.

Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution" (IJCV 2024). Only the encoder and the
transforms are trained. `stablesr_cfw` is the second stage, which needs a finished trial of this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainables.common.errors import InputError, blamed_on
from trainables.diffusion.gaussian import Denoise
from trainables.methods.method import Batch
from trainables.methods.shared.colour import with_degraded_colours
from trainables.methods.shared.stable_diffusion import StableDiffusionMethod
from trainables.networks.checkpoint_files import alike, load_strictly
from trainables.networks.time_aware import (
    ModulatedUNet,
    TimeAwareConditioning,
    check_width,
    convert_official_stablesr,
    read_official_stablesr,
)
from trainables.pretrained.base_model import find_base, read_shape
from trainables.pretrained.identity import base_identity
from trainables.settings import TrialSettings


class StableSR(StableDiffusionMethod):
    frozen_unet = True

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        unet, chosen = self.load_base_unet(), settings.stablesr
        with blamed_on(f"stablesr.width={chosen.width}"):
            conditioning = TimeAwareConditioning(
                unet, chosen.width, chosen.layers, chosen.width // 2, normalised=chosen.modulation == "spade"
            )
        if settings.training.gradient_checkpointing:
            conditioning.encoder.enable_gradient_checkpointing()
        self.networks = nn.ModuleDict({"conditioning": conditioning.to(device)})
        self.unet = unet.to(device).eval().requires_grad_(False)
        self.modulated = ModulatedUNet(self.unet, conditioning.transforms)

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        chosen = settings.stablesr
        return {
            **base_identity(settings),
            "diffusion.prediction_type": settings.diffusion.prediction_type,
            "stablesr.width": chosen.width,
            "stablesr.layers": chosen.layers,
            "stablesr.modulation": chosen.modulation,
        }

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        super().check(settings)
        shape = read_shape(find_base(settings.base.weights, settings.base.revision))
        with blamed_on(f"stablesr.width={settings.stablesr.width}"):
            check_width(settings.stablesr.width, shape.norm_groups)

    def load_public(self, path: Path) -> None:
        """The encoder and the transforms of StableSR's `stablesr_000117.ckpt`.

        Raises:
            InputError: it was trained on another UNet than the base's, or with other transforms.
        """
        if self.settings.stablesr.modulation != "spade":
            raise InputError(f"checkpoint={path}: was trained with stablesr.modulation=spade; expected this setting")
        base, conditioning = convert_official_stablesr(read_official_stablesr(path), self.unet)
        if not alike(base, self.unet.state_dict()):
            own = self.settings.base.weights
            raise InputError(f"checkpoint={path}: trained on another UNet; expected that of base.weights={own}")
        load_strictly(self.networks["conditioning"], conditioning)

    def prompted(self, batch: Batch, prompt: Tensor) -> Denoise:
        conditioning, degraded = self.networks["conditioning"], batch["latent_degraded"]
        return lambda x_t, t: self.modulated(x_t, t, prompt, conditioning(degraded, t))

    def restore(self, batch: Batch) -> Tensor:
        scale, colour = self.settings.pairs.scale, self.settings.stablesr.colour
        return with_degraded_colours(super().restore(batch), batch["degraded"], scale, colour)
