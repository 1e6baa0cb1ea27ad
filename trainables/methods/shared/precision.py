"""Lower precisions: what autocast computes in, and frozen weights that are held in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import nn

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""`training.precision` -> the type of autocast; none for fp32."""


def unets(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The UNets of Stable Diffusion among them."""
    if "diffusers" not in sys.modules:  # to import it takes seconds, see trainables.pretrained.autoencoders
        return []
    from diffusers import UNet2DConditionModel

    return [module for module in modules if isinstance(module, UNet2DConditionModel)]


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
    for unet in unets(module for part in parts for module in part.modules()):
        for layer in (one for one in unet.modules() if isinstance(one, nn.Linear | nn.Conv2d)):
            weights = list(layer.parameters(recurse=False))
            if not any(weight.requires_grad for weight in weights):
                for weight in weights:
                    weight.data = weight.data.to(AUTOCAST[precision])
