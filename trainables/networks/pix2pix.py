"""The networks of Pix2Pix: a U-Net that translates images, and a PatchGAN that discriminates patches of them.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (CVPR 2017), layer for layer as
`UnetGenerator` and `NLayerDiscriminator` of the authors' PyTorch code (`models/networks.py` of
pytorch-CycleGAN-and-pix2pix). Its checkpoints can be loaded.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.networks.checkpoint_files import load_strictly, read_weights


class UNetGenerator(nn.Module):
    """Translates an image into another of the same size.

    Every level halves the size on the way down and doubles it on the way up, where it also sees the features of its
    size from the way down. Level 0 is the image's.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the translation.
        downs: levels; 8 is the paper's "U-Net 256", 7 its "U-Net 128".
        ngf: width of level 0; it doubles with every level, up to 8 x `ngf`.
        norm: "batch", "instance" or "none", as in the official code, where convolutions have biases with "instance"
            only; or "instance_affine": each image by its own statistics, then the scale and shift that "batch" learns.
            For a batch of one in training mode, as the official code trains and tests, it is "batch".
        dropout: drop half of the features on the way up, in the levels from 4 to the last but one. In the paper this
            is the generator's source of noise, also at test time; here `eval()` turns it off.

    Raises:
        ValueError: a configuration that cannot be built; the message names the argument.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        downs: int = 8,
        ngf: int = 64,
        norm: str = "batch",
        dropout: bool = True,
    ) -> None:
        super().__init__()
        self.downs, self.ngf, self.norm = downs, ngf, norm
        if downs < 2:
            raise ValueError(f"downs is {downs}; it must be at least 2")
        self.in_channels = in_channels
        widths = [ngf * min(2**level, 8) for level in range(downs)]
        bias, innermost = norm == "instance", downs - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            outer = widths[level - 1] if level else in_channels
            conv = nn.Conv2d(outer, width, 4, stride=2, padding=1, bias=bias)
            self.down.append(_stage(conv, norm if 0 < level < innermost else "none"))

            inner = width if level == innermost else 2 * width
            outer = widths[level - 1] if level else out_channels
            upconv = nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1, bias=bias or level == 0)
            self.up.append(_stage(upconv, norm if level else "none", dropout and 4 <= level < innermost))
        self.apply(_initialise)

    @property
    def size_multiple(self) -> int:
        """Sides of images must be multiples of it, 256 for 8 levels."""
        return 2 ** len(self.down)

    def forward(self, images: Tensor) -> Tensor:
        """`(B, in_channels, H, W)` in [-1, 1] `-> (B, out_channels, H, W)` in [-1, 1].

        Raises:
            ValueError: unsupported sides or channels.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images are {tuple(images.shape)}; they must be (B, {self.in_channels}, H, W)")
        height, width = images.shape[2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"images are {height}x{width}; both sides must be multiples of {self.size_multiple}")

        # The skips are activated in place, so both ways share one tensor, as in the official code. This changes no
        # result: ReLU comes next on the way up, and ReLU(LeakyReLU(x)) = ReLU(x).
        h, skips = images, []
        for stage in self.down:
            h = F.leaky_relu(stage(h), 0.2, inplace=True)
            skips.append(h)
        *outer, innermost = self.up
        h = innermost(F.relu(skips.pop()))
        for stage in reversed(outer):
            h = stage(F.relu(torch.cat([skips.pop(), h], dim=1), inplace=True))
        return h.tanh()


class PatchGAN(nn.Module):
    """Distinguishes real from generated images, with one logit for each of many overlapping patches.

    Args:
        in_channels: channels of its input; a conditional discriminator gets the input image and its translation
            concatenated along channels.
        ndf: width at half the size; it doubles with every layer, up to 8 x `ndf`.
        layers: strided layers; 3 give patches of 70x70 pixels.
        norm: "batch", "instance", "instance_affine" or "none", as in the generator.

    Raises:
        ValueError: a configuration that cannot be built; the message names the argument.
    """

    def __init__(self, *, in_channels: int = 6, ndf: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers is {layers}; it must be at least 1")
        self.in_channels = in_channels
        widths = [ndf * min(2**layer, 8) for layer in range(layers + 1)]
        self.stages = nn.ModuleList([_stage(nn.Conv2d(in_channels, ndf, 4, stride=2, padding=1))])
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            conv = nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, padding=1, bias=norm == "instance")
            self.stages.append(_stage(conv, norm))
        self.head = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self.apply(_initialise)

    @staticmethod
    def least_side(layers: int) -> int:
        """The smallest side of an image, in pixels, for which this many strided layers give a logit."""
        return 3 * 2**layers

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `(B, in_channels, H, W)` in [-1, 1] `-> (B, 1, h, w)`; 30x30 of them for 256x256 pixels.

        Raises:
            ValueError: other channels, or sides too short for a single logit.
        """
        smallest = self.least_side(len(self.stages) - 1)
        if images.ndim != 4 or images.shape[1] != self.in_channels or min(images.shape[2:]) < smallest:
            raise ValueError(
                f"images are {tuple(images.shape)}; they must be (B, {self.in_channels}, H, W), sides from {smallest}"
            )
        h = images
        for stage in self.stages:
            h = F.leaky_relu(stage(h), 0.2, inplace=True)
        return self.head(h)


def _stage(conv: nn.Conv2d | nn.ConvTranspose2d, norm: str = "none", dropout: bool = False) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](conv=conv)
    match norm:
        case "batch":
            layers["norm"] = nn.BatchNorm2d(conv.out_channels)
        case "instance" | "instance_affine":
            layers["norm"] = nn.InstanceNorm2d(conv.out_channels, affine=norm == "instance_affine")
        case "none":
            pass
        case _:
            raise ValueError(f"norm is {norm!r}; it must be 'batch', 'instance', 'instance_affine' or 'none'")
    if dropout:
        layers["dropout"] = nn.Dropout(0.5)
    return nn.Sequential(layers)


def _initialise(module: nn.Module) -> None:
    """Weights of standard deviation 0.02, as in the paper."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" in own:  # of a convolution, or the scales of a normalisation
        nn.init.normal_(own["weight"], 0.0 if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else 1.0, 0.02)
    if "bias" in own:
        nn.init.zeros_(own["bias"])


def load_pix2pix(path: str | Path) -> UNetGenerator:
    """Loads an official generator (`latest_net_G.pth`) of any size, in evaluation mode on the CPU.

    The official `test.py` keeps its generator in training mode unless it gets `--eval`, so batch norm uses the
    statistics of the given image and dropout is active; `train()` does the same here.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: not a U-Net generator.
        RuntimeError: weights missing, unexpected or of other shapes; the message names them.
    """
    try:
        weights = convert_official_generator(read_weights(Path(path), own=("model.model.0.", "model.model.1.")))
    except ValueError as error:
        raise ValueError(f"{path} is not a Pix2Pix generator: {error}") from None
    if not {"down.0.conv.weight", "up.0.conv.weight"} <= weights.keys():
        raise ValueError(f"{path} is not a Pix2Pix generator; it must hold the weights of the official UnetGenerator")
    ngf, in_channels = weights["down.0.conv.weight"].shape[:2]
    model = UNetGenerator(
        in_channels=in_channels,
        out_channels=weights["up.0.conv.weight"].shape[1],
        downs=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("down.")),
        ngf=ngf,
        norm="batch" if "up.1.norm.weight" in weights else "instance" if "up.1.conv.bias" in weights else "none",
    )
    load_strictly(model, weights)
    return model.eval()


# The layers of an official block's `Sequential` by number. The missing numbers are the next block and activations; the
# innermost block contains no other, so its way up has the numbers 3 and 4.
_OUTERMOST = {"0": "down.{}.conv", "3": "up.{}.conv"}
_INNER = {
    "1": "down.{}.conv", "2": "down.{}.norm",
    "3": "up.{}.conv", "4": "up.{}.norm",
    "5": "up.{}.conv", "6": "up.{}.norm",
}  # fmt: skip


def convert_official_generator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames weights of the official `UnetGenerator`, with or without a leading `module.`, to `UNetGenerator`'s.

    Keys of another layout stay unchanged, so that a strict load names them.
    """
    converted = {}
    for key, value in state.items():
        if found := re.fullmatch(r"(?:module\.)?model\.model\.(1\.model\.(?:3\.model\.)*)?(\d)\.(\w+)", key):
            nesting, number, name = found.groups(default="")
            part = (_INNER if nesting else _OUTERMOST).get(number)
            if part is not None:
                key = f"{part.format(nesting.count('model'))}.{name}"
        converted[key] = value
    return converted


def convert_official_discriminator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames weights of the official `NLayerDiscriminator`, with or without a leading `module.`, to `PatchGAN`'s.

    Keys of another layout stay unchanged, so that a strict load names them.
    """
    found = {key: re.fullmatch(r"(?:module\.)?model\.(\d+)\.(\w+)", key) for key in state}
    last = max((int(match[1]) for match in found.values() if match), default=0)
    converted = {}
    for key, value in state.items():
        if match := found[key]:
            # Convolution and activation, then convolution, norm and activation in turn, then a convolution.
            stage, part = divmod(int(match[1]) + 1, 3)
            if int(match[1]) == last:
                key = f"head.{match[2]}"
            elif int(match[1]) == 0:
                key = f"stages.0.conv.{match[2]}"
            elif part < 2:
                key = f"stages.{stage}.{('conv', 'norm')[part]}.{match[2]}"
        converted[key] = value
    return converted
