"""Conditional latent diffusion: a pretrained Stable Diffusion UNet that also gets the degraded image's latent.

Ke et al., "Repurposing Diffusion-Based Image Generators for Monocular Depth Estimation" (Marigold, CVPR 2024): the
conditioning latent is concatenated to the noisy one, the prompt is empty. LoRA (Hu et al., ICLR 2022) and the widened
first convolution adapt the UNet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from trainables.common.errors import blamed_on
from trainables.diffusion.gaussian import Denoise
from trainables.methods.method import Batch
from trainables.methods.shared.stable_diffusion import StableDiffusionMethod
from trainables.networks.stable_diffusion import (
    add_lora,
    load_lora_state_dict,
    lora_differences,
    predict,
    widen_conv_in,
)
from trainables.pretrained.identity import base_identity
from trainables.pretrained.lora_file import read_lora
from trainables.settings import TrialSettings


class LatentDiffusion(StableDiffusionMethod):
    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        unet, lora = self.load_base_unet(), settings.lora
        with blamed_on("conv_in.init"):
            widen_conv_in(unet, settings.conv_in.init)
        if lora.rank:
            with blamed_on(f"lora.targets={','.join(lora.targets)}"):
                add_lora(unet, lora.rank, lora.scale * lora.rank, lora.targets, lora.dropout)
        if lora.weights and not settings.checkpoint:
            with blamed_on(f"lora.weights={lora.weights}"):
                _load_lora(unet, Path(lora.weights))
        unet.conv_in.requires_grad_(not settings.conv_in.frozen)
        self.networks = nn.ModuleDict({"unet": unet.to(device)})

    @staticmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        lora, conv_in = settings.lora, settings.conv_in
        adapter = {"lora.rank": lora.rank, "lora.scale": lora.scale, "lora.targets": lora.targets}
        return {
            **base_identity(settings),
            "diffusion.prediction_type": settings.diffusion.prediction_type,
            # If frozen, it is not saved with the weights.
            "conv_in.frozen": conv_in.frozen,
            **({"conv_in.init": conv_in.init} if conv_in.frozen else {}),
            **(adapter if lora.rank else {"lora.rank": 0}),
        }

    def prompted(self, batch: Batch, prompt: Tensor) -> Denoise:
        unet, conditioning = self.networks["unet"], batch["latent_degraded"]
        return lambda x_t, t: predict(unet, conditioning, x_t, t, prompt)


def _load_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Loads updates into a UNet that has updates of the same rank, scale and layers."""
    state, metadata = read_lora(path, unet)
    differences = lora_differences(unet, state, metadata)
    if differences:
        theirs, ours = (
            " ".join(f"lora.{name}={_typed(values[side])}" for name, values in differences.items()) for side in (0, 1)
        )
        raise ValueError(f"it has {theirs}, the trial {ours}; expected {theirs} or another file")
    load_lora_state_dict(unet, state)


def _typed(value: Any) -> str:
    """The text that `--set` accepts for it."""
    return ",".join(value) if isinstance(value, list) else f"{value:.10g}"
