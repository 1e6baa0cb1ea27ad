"""Lower precisions: what autocast computes in, and frozen weights that are held in it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers import UNet2DConditionModel
from torch import nn

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""`training.precision` -> the type of autocast; none for fp32."""


def hold_frozen_base(parts: Iterable[nn.Module], precision: str) -> None:
    """Holds the frozen linear layers and convolutions of UNets in the type in which autocast computes them.

    That halves their memory and saves converting them in every step. It changes no number: autocast would round the
    weights to the same values. Norms stay in float32, in which autocast computes them.

    Args:
        parts: modules, of which all UNets are used under autocast only.
        precision: `training.precision`.
    """
    if precision not in AUTOCAST:
        return
    unets = (module for part in parts for module in part.modules() if isinstance(module, UNet2DConditionModel))
    for layer in (layer for unet in unets for layer in unet.modules() if isinstance(layer, nn.Linear | nn.Conv2d)):
        weights = list(layer.parameters(recurse=False))
        if not any(weight.requires_grad for weight in weights):
            for weight in weights:
                weight.data = weight.data.to(AUTOCAST[precision])
