"""The perceptual term of a method's loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.methods.method import LossTerm
from trainables.metrics import LPIPS, STLPIPS
from trainables.metrics.lpips import Net, ensure_backbone
from trainables.settings import PerceptualSettings, TrialSettings
from trainables.settings.methods import METHODS

_BACKBONES: dict[str, Net] = {"lpips": "alex", "lpips_vgg": "vgg"}


def ensure_loss_networks(settings: TrialSettings, allow_download: bool = True) -> None:
    """Downloads what LPIPS needs in the losses of a trial and is not on this machine.

    Raises:
        MetricUnavailableError: missing and not downloaded; the message names the setting.
    """
    terms = {
        "perceptual": (settings.perceptual.weight, settings.perceptual.network),
        "resshift_loss": (settings.resshift_loss.lpips, settings.resshift_loss.network),
    }
    for section, (weight, network) in terms.items():
        if weight and network in _BACKBONES and section in METHODS[settings.method].sections:
            ensure_backbone(allow_download, net=_BACKBONES[network], metric=f"{section}.network={network}")


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
