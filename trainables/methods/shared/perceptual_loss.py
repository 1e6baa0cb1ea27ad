"""The perceptual term of a method's loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.methods.method import LossTerm
from trainables.metrics import LPIPS, STLPIPS
from trainables.metrics.lpips import Net
from trainables.settings import PerceptualSettings

_BACKBONES: dict[str, Net] = {"lpips": "alex", "lpips_vgg": "vgg"}


class PerceptualLoss(nn.Module):
    """LPIPS or ST-LPIPS between images in [-1, 1], in float32, in every n-th step.

    Raises:
        InputError: the weights of its network are missing.
    """

    def __init__(self, settings: PerceptualSettings, device: torch.device) -> None:
        super().__init__()
        self.settings = settings
        self._network: nn.Module | None = None
        if settings.weight:
            network = STLPIPS() if settings.network == "st_lpips" else LPIPS(_BACKBONES[settings.network])
            self._network = network.to(device).eval().requires_grad_(False)

    def due(self, step: int) -> bool:
        """Whether the term is part of this step's loss."""
        return self._network is not None and step % self.settings.every == 0

    def forward(self, images: Tensor, target: Tensor) -> LossTerm:
        """The term, for a step in which it is due; `images` and `target` are (B, 3, H, W)."""
        assert self._network is not None
        with torch.autocast(images.device.type, enabled=False):
            return LossTerm(self._network(images.float(), target.float()).mean(), self.settings.weight)
