"""MUSIQ: a transformer that estimates people's mean opinion score of an image.

J. Ke, Q. Wang, Y. Wang, P. Milanfar, F. Yang, "MUSIQ: Multi-scale Image Quality Transformer", ICCV 2021, as trained on
KonIQ-10k. Needs no target. The network is pyiqa's, as in SinSR's tables. pyiqa is not a dependency of this project: its
licence (PolyForm Noncommercial) forbids commercial use, and it brings some thirty packages. It is used if the user has
installed it and put the weights into its cache. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from trainables.metrics.names import MetricUnavailableError

_REPOSITORY, _FILE = "chaofengc/IQA-PyTorch-Weights", "musiq_koniq_ckpt-e95806b9.pth"


class MUSIQ(nn.Module):
    """MUSIQ score with frozen weights.

    Raises:
        MetricUnavailableError: pyiqa is not installed, or the weights are not on this machine or cannot be read.
    """

    def __init__(self) -> None:
        super().__init__()
        path = weights_path()
        # Its own loader would unpickle any object. Building the network must not change the caller's random state.
        with torch.random.fork_rng(devices=[]):
            self.network = _architecture().MUSIQ(pretrained=False)
        try:
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # for a damaged file the unpickler raises many types, such as KeyError
            raise MetricUnavailableError(
                f"val/musiq: {path} cannot be read ({type(error).__name__}); delete it and download it again"
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB images in [0, 1] -> (B,) scores of about 0 to 100; higher is better."""
        return self.network(image).flatten()


def weights_path() -> Path:
    """The path of the weights in pyiqa's cache: in torch hub's folder, under TORCH_HOME or in the user's cache.

    Raises:
        MetricUnavailableError: no such file, or pyiqa cannot be imported; the message says how to get it.
    """
    folder = Path(torch.hub.get_dir()) / "pyiqa"
    if not (folder / _FILE).is_file():
        raise MetricUnavailableError(
            f"val/musiq is absent: its weights are not at {folder / _FILE}; get them with: "
            f"hf download {_REPOSITORY} {_FILE} --local-dir {folder}, and pip install pyiqa; both are non-commercial"
        )
    _architecture()
    return folder / _FILE


def _architecture() -> ModuleType:
    try:
        return importlib.import_module("pyiqa.archs.musiq_arch")
    except ImportError as error:
        raise MetricUnavailableError(
            f"val/musiq is absent: pyiqa cannot be imported ({error}); pip install pyiqa, which is non-commercial"
        ) from error
