"""DISTS: structure and texture similarity of VGG-16 features.

K. Ding, K. Ma, S. Wang, E. P. Simoncelli, "Image Quality Assessment: Unifying Structure and Texture Similarity", IEEE
TPAMI 2020 (arXiv 2004.07728). The network is that of torchmetrics, whose wheel contains the learned weights of the
features. The backbone is torchvision's VGG-16 from torch hub's cache, the file of LPIPS with VGG-16. Images are
compared at their own size: the authors' script first shrinks larger ones to a short side of 256 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.metrics.lpips import ensure_backbone
from trainables.metrics.names import MetricUnavailableError


class DISTS(nn.Module):
    """DISTS distance with frozen weights.

    Raises:
        MetricUnavailableError: the backbone is not in torch hub's cache, or cannot be read.
    """

    def __init__(self) -> None:
        from torchmetrics.functional.image.dists import DISTSNetwork  # with torchvision, this takes seconds

        super().__init__()
        path = ensure_backbone(allow_download=False, net="vgg", metric="val/dists")
        try:
            with torch.random.fork_rng(devices=[]):  # it first draws random weights
                self.network = DISTSNetwork()
        except Exception as error:  # for a damaged file the unpickler raises many types, such as KeyError
            raise MetricUnavailableError(
                f"val/dists: {path} cannot be read ({type(error).__name__}: {error}); delete it and download it again"
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) RGB images in [-1, 1] -> (B,) distances, 0 for identical images, at most about 1."""
        distance: Tensor = self.network(a * 0.5 + 0.5, b * 0.5 + 0.5)
        return distance.reshape(len(a))
