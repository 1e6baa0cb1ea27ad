"""Shift-tolerant LPIPS: a perceptual distance that small misalignments hardly change.

A. Ghildyal, F. Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022. LPIPS with an anti-aliased backbone: each
stride of AlexNet or VGG-16 is replaced by a reflect-padded binomial blur that subsamples. The trained weights come
with the `stlpips-pytorch` wheel; its weight files are read, none of its code is run.
"""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.metrics.names import MetricUnavailableError

Backbone = Literal["alex", "vgg"]

# Per-channel mean and deviation of ImageNet, for images in [-1, 1] (LPIPS v0.1).
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)

# With smaller sides, some blur gets fewer than the 3 samples that a reflection by 2 needs.
_MIN_SIDE: dict[str, int] = {"alex": 21, "vgg": 18}

_BLUR = (0.25, 0.5, 0.25)
_MEAN_OF_TWO = (0.5, 0.5)


class STLPIPS(nn.Module):
    """Shift-tolerant LPIPS distance with frozen weights, usable as a metric and as a training loss.

    Args:
        net: backbone, "alex" (2.5 M weights; the one reported as `val/st_lpips`) or "vgg" (14.7 M).

    Raises:
        ValueError: `net` is neither "alex" nor "vgg".
        MetricUnavailableError: the weight file is not installed.
    """

    def __init__(self, net: Backbone = "alex") -> None:
        super().__init__()
        if net not in _MIN_SIDE:
            raise ValueError(f"net={net!r}: accepted are {', '.join(map(repr, _MIN_SIDE))}")
        self.min_side = _MIN_SIDE[net]
        state = torch.load(weights_path(net), map_location="cpu", weights_only=True)
        convolutions = _convolutions(state)
        self.stages = nn.ModuleList(_alexnet(convolutions) if net == "alex" else _vgg16(convolutions))
        self.heads = nn.ParameterList(state[f"lin{i}.model.1.weight"].flatten() for i in range(5))
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of images: symmetric, 0 for identical images, differentiable in both.

        The weights are frozen, so autograd stores nothing for an argument that needs no gradient (the target).

        Args:
            a, b: (B, 3, H, W) RGB images in [-1, 1]; sides of at least 21 (alex) or 18 (vgg) pixels.

        Returns:
            (B,) float32 distances, >= 0.

        Raises:
            ValueError: shapes differ, are not (B, 3, H, W), or are too small.
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < self.min_side:
            raise ValueError(
                f"images of shape {tuple(a.shape)} and {tuple(b.shape)}: "
                f"accepted are two of (B, 3, H, W) with H, W >= {self.min_side}"
            )
        a, b = self._normalised(a), self._normalised(b)
        distance = torch.zeros(len(a), device=a.device)
        for stage, head in zip(self.stages, self.heads, strict=True):
            a, b = stage(a), stage(b)
            difference = _unit_length(a) - _unit_length(b)
            # The head is a weighted sum over channels, so it commutes with the mean over the image.
            distance = distance + (difference.square().mean(dim=(2, 3)) * head).sum(dim=1)
        return distance

    def _normalised(self, image: Tensor) -> Tensor:
        image = (image - self.shift) / self.scale
        # On a CPU, pooling and blurring (C, H, W) planes would take as long as the convolutions.
        return image.contiguous(memory_format=torch.channels_last) if image.device.type == "cpu" else image


def weights_path(net: Backbone = "alex") -> Path:
    """The trained weights inside the installed `stlpips-pytorch`, found without importing that package.

    Raises:
        MetricUnavailableError: the package or its file is missing.
    """
    spec = importlib.util.find_spec("stlpips_pytorch")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
        if path.is_file():
            return path
    raise MetricUnavailableError(
        f"val/st_lpips needs the file stlpips_pytorch/weights/vST0.0/{net}_shift_tolerant.pth, "
        "which is not installed: pip install stlpips-pytorch==0.0.2"
    )


def _convolutions(state: dict[str, Tensor]) -> list[nn.Conv2d]:
    """The backbone's convolutions, in the order of the file, which is the order of the network."""
    convolutions = []
    for key in (key for key in state if key.startswith("net.") and key.endswith(".weight")):
        outputs, inputs, size, _ = state[key].shape
        # All keep their input's size except AlexNet's first, which is 11 wide and padded by 2. Without random
        # initialisation, because a metric must not change the caller's random state.
        convolution = nn.utils.skip_init(nn.Conv2d, inputs, outputs, size, padding=min(size // 2, 2))
        convolution.load_state_dict({"weight": state[key], "bias": state[key.replace(".weight", ".bias")]})
        convolutions.append(convolution)
    return convolutions


def _alexnet(convolutions: list[nn.Conv2d]) -> list[nn.Sequential]:
    """AlexNet up to its fifth ReLU. Its first stride, of 4, is a blur by 2 between convolution and ReLU."""
    conv1, conv2, conv3, conv4, conv5 = convolutions
    relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=1)
    return [
        nn.Sequential(_BlurredConv(conv1), relu),
        nn.Sequential(pool, _BlurPool(conv2.in_channels), conv2, relu),
        nn.Sequential(pool, _BlurPool(conv3.in_channels), conv3, relu),
        nn.Sequential(conv4, relu),
        nn.Sequential(conv5, relu),
    ]


def _vgg16(convolutions: list[nn.Conv2d]) -> list[nn.Sequential]:
    """VGG-16's five stages of 2, 2, 3, 3 and 3 convolutions, with a pooling and a blur between stages."""
    stages, remaining = [], iter(convolutions)
    for index, depth in enumerate((2, 2, 3, 3, 3)):
        stage = list(islice(remaining, depth))
        layers: list[nn.Module] = []
        if index:
            layers += [nn.MaxPool2d(2, stride=1), _BlurPool(stage[0].in_channels)]
        for convolution in stage:
            layers += [convolution, nn.ReLU(inplace=True)]
        stages.append(nn.Sequential(*layers))
    return stages


class _BlurPool(nn.Module):
    """Blur by [1 2 1] / 4 along both axes with stride 2, on features reflect-padded by 2.

    (B, C, N, M) -> (B, C, (N + 1) // 2 + 1, (M + 1) // 2 + 1), for N, M >= 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernel: Tensor
        blur = torch.tensor(_BLUR)
        self.register_buffer("kernel", torch.outer(blur, blur).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class _BlurredConv(nn.Module):
    """A stride-1 convolution and the `_BlurPool` after it, as one convolution with stride 2.

    The values are the same, with a third of the arithmetic and no full-size feature map. Only the ends of the blur need
    care. For outputs c[0..N-1] of the convolution along one side, the first blurred value reads the reflected c[2] c[1]
    c[0] and the second c[0] c[1] c[2]: the first is a copy of the second. If N is odd, the last one is a copy of its
    neighbour too; if N is even, it reads c[N-2] c[N-1] c[N-2]: their mean.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        self.bias = convolution.bias
        self.padding = int(convolution.padding[0])
        self.last_two = weight.shape[-1] + 1  # number of inputs of the convolution's last two outputs
        self.body = nn.ParameterList([_blurred(weight, _BLUR, _BLUR), _blurred(weight, _BLUR, _MEAN_OF_TWO)])
        self.bottom = nn.ParameterList(
            [_blurred(weight, _MEAN_OF_TWO, _BLUR), _blurred(weight, _MEAN_OF_TWO, _MEAN_OF_TWO)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.padding,) * 4)
        rows = self._rows(x, *self.body)
        even = (x.shape[2] - self.last_two) % 2 == 0  # N = inputs - kernel + 1 = inputs - last_two + 2
        last = self._rows(x[:, :, -self.last_two :], *self.bottom) if even else rows[:, :, -1:]
        return torch.cat([rows[:, :, :1], rows, last], dim=2)

    def _rows(self, x: Tensor, body: Tensor, right: Tensor) -> Tensor:
        columns = F.conv2d(x, body, self.bias, stride=2)
        even = (x.shape[3] - self.last_two) % 2 == 0
        # Compute two columns and keep one: for an output one column wide, torch's bfloat16 convolution on CPUs
        # with AMX reads uninitialised memory (seen with 2.14).
        last = F.conv2d(x[..., -self.last_two - 2 :], right, self.bias, stride=2) if even else columns
        return torch.cat([columns[..., :1], columns, last[..., -1:]], dim=3)


def _blurred(weight: Tensor, vertical: tuple[float, ...], horizontal: tuple[float, ...]) -> Tensor:
    """Kernel (O, I, K, K) and a symmetric filter after it, as one kernel (O, I, K + V - 1, K + H - 1)."""
    taps = torch.outer(torch.tensor(vertical), torch.tensor(horizontal))[None, None]
    planes = weight.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(planes, taps, padding=(len(vertical) - 1, len(horizontal) - 1))
    return planes.unflatten(0, weight.shape[:2]).squeeze(2)


def _unit_length(features: Tensor) -> Tensor:
    """Features scaled to unit length along channels, in float32.

    Where all channels are 0, `vector_norm` has gradient 0; a plain square root would give NaN.
    """
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
