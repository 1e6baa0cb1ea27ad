"""StableSR's Controllable Feature Wrapping: the encoder's features of the degraded image, fused into the decoder.

Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution" (IJCV 2024). Only the fusion is trained,
at strength 1; the strength is chosen at restoration. The official code has a balanced adversarial term, but its last
layer is frozen, so the weight stays as set; this code does the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.common.errors import InputError, blamed_on
from trainables.images.tensors import upsample
from trainables.methods.method import Batch
from trainables.methods.shared.colour import with_degraded_colours
from trainables.methods.shared.decoder import DecoderMethod
from trainables.networks.cfw import (
    ControllableFeatureWrapping,
    decode_with_features,
    encode_with_features,
    load_official_cfw,
)
from trainables.networks.checkpoint_files import alike
from trainables.pretrained.identity import base_fingerprint
from trainables.settings import TrialSettings


class StableSRCFW(DecoderMethod):
    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.adversarial = settings.cfw.adversarial, settings.cfw.adversarial_start

    def build_decoder(self) -> ControllableFeatureWrapping:
        config, cfw = self.vae.config, self.settings.cfw
        with blamed_on("base.weights"):
            return ControllableFeatureWrapping(
                config.block_out_channels, config.norm_num_groups, cfw.dense_blocks, cfw.growth
            )

    @staticmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        return frozenset({"target", "degraded", "restored"})

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        cfw = settings.cfw
        return {
            "base": base_fingerprint(settings, "vae"),
            "cfw.dense_blocks": cfw.dense_blocks,
            "cfw.growth": cfw.growth,
        }

    def load_public(self, path: Path) -> None:
        """The fusion of StableSR's `vqgan_cfw_00011.ckpt`; the discriminator starts with random weights.

        Raises:
            InputError: it was trained with another autoencoder than the base's.
        """
        vae, wrapping = load_official_cfw(path)
        if not alike(vae.state_dict(), self.vae.state_dict()):
            base = self.settings.base.weights
            raise InputError(f"checkpoint={path}: trained in another autoencoder; expected that of base.weights={base}")
        self.networks["decoder"].load_state_dict(wrapping.state_dict())

    def decode(self, latents: Tensor, degraded: Tensor, strength: float) -> Tensor:
        with torch.no_grad():
            _, features = encode_with_features(self.vae, upsample(degraded, self.settings.pairs.scale))
        wrapping: ControllableFeatureWrapping = self.networks["decoder"]  # type: ignore[assignment]
        return decode_with_features(self.vae, wrapping, latents / self.scaling, features, strength)

    def restore(self, batch: Batch) -> Tensor:
        scale, colour = self.settings.pairs.scale, self.settings.cfw.colour
        return with_degraded_colours(super().restore(batch), batch["degraded"], scale, colour)

    @property
    def strength(self) -> float:
        return self.settings.cfw.strength
