"""LPIPS (Zhang et al. 2018): the `lpips` package with an AlexNet or VGG-16 backbone from torch hub's cache.

The wheel contains the linear heads; the backbones are torchvision's, downloads of 233 and 528 MiB. Only
`ensure_backbone` downloads them: on the driver, when the sweep chooses its metrics, and once on each machine that
measures. `LPIPS` itself only reads the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import tempfile
import threading
import time
import urllib.request
import warnings
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from trainables.metrics.names import MetricUnavailableError

Net = Literal["alex", "vgg"]
_FILES: dict[Net, str] = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_METRICS: dict[Net, str] = {"alex": "val/lpips", "vgg": "val/lpips_vgg"}


class LPIPS(nn.Module):
    """LPIPS distance, version 0.1, with frozen weights.

    Args:
        net: the backbone: AlexNet, or VGG-16 as in the training of ResShift, SinSR and VQGAN.

    Raises:
        MetricUnavailableError: the backbone is not in torch hub's cache, or cannot be read.
    """

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        import lpips

        backbone = _read_backbone(net)
        # The package first makes a random backbone; this must not change the caller's random state.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision warns about the package's arguments
            self.network = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
        for stage in self.network.net.children():
            for index, layer in stage.named_children():  # named by their index in the backbone's `features`
                if isinstance(layer, nn.Conv2d):
                    prefix = f"features.{index}."
                    layer.load_state_dict({key: backbone[prefix + key] for key in ("weight", "bias")})
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) RGB images in [-1, 1], H and W at least 31 -> (B,) distances, >= 0."""
        return self.network(a, b).flatten()


def backbone_path(net: Net = "alex") -> Path:
    """The path of a backbone's weights in torch hub's cache: under TORCH_HOME, else in the user's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _FILES[net]


def ensure_backbone(
    allow_download: bool = True,
    connect_seconds: float = 4,
    download_seconds: float = 120,
    net: Net = "alex",
    metric: str = "",
) -> Path:
    """The path of a backbone's weights; downloads them if they are missing.

    Args:
        allow_download: whether to use the network at all.
        connect_seconds: time limit for the server's first answer, including the name look-up.
        download_seconds: time limit for the whole file.
        metric: name of the metric for messages; by default LPIPS with this backbone.

    Raises:
        MetricUnavailableError: missing and not downloaded in time; the message says how to get it.
    """
    path = backbone_path(net)
    if path.is_file():
        return path
    if not allow_download:
        raise _absent(net, "not downloaded", metric)
    try:
        _download(_url(net), path, connect_seconds, download_seconds)
    except (OSError, HTTPException) as error:
        raise _absent(net, f"the download failed: {error}", metric) from error
    return path


def _url(net: Net) -> str:
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    return (AlexNet_Weights if net == "alex" else VGG16_Weights).IMAGENET1K_V1.url


def _absent(net: Net, why: str, metric: str = "") -> MetricUnavailableError:
    name = "AlexNet" if net == "alex" else "VGG-16"
    return MetricUnavailableError(
        f"{metric or _METRICS[net]} is absent: its {name} backbone is not on this machine ({why}); "
        f"download {_url(net)} to {backbone_path(net)}"
    )


def _read_backbone(net: Net) -> dict[str, Tensor]:
    path = backbone_path(net)
    if not path.is_file():
        raise _absent(net, "no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged file the unpickler raises many types, such as KeyError
        raise MetricUnavailableError(
            f"{_METRICS[net]}: {path} cannot be read ({type(error).__name__}: {error}); delete it and download it again"
        ) from error


def _download(url: str, path: Path, connect_seconds: float, download_seconds: float) -> None:
    """Downloads `url` to `path`. The file appears only when complete and with the right checksum.

    By torch hub's convention, the SHA-256 of a file `name-<digits>.pth` begins with these digits.
    """
    expected = path.stem.rpartition("-")[2]
    deadline = time.monotonic() + download_seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with _open(url, connect_seconds) as response:
        descriptor, partial = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                while chunk := response.read(1 << 20):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not complete after {download_seconds:.0f} s")
                    digest.update(chunk)
                    file.write(chunk)
            if not digest.hexdigest().startswith(expected):
                raise OSError(f"SHA-256 begins with {digest.hexdigest()[: len(expected)]}, not {expected}")
            os.replace(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)


def _open(url: str, seconds: float) -> HTTPResponse:
    """The server's answer within `seconds`. Runs in a thread, because a socket's time-out does not cover the name
    look-up.
    """
    answer: queue.Queue[HTTPResponse | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=seconds))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        response = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if isinstance(response, Exception):
        raise response
    return response
