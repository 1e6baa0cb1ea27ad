"""Settings of Pix2Pix, and of the perceptual term that several methods add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import MOST_STEPS, require, require_weight, require_within


@dataclass(frozen=True)
class PerceptualSettings:
    """A perceptual term on restored images.

    Attributes:
        weight: 0 leaves it out.
        every: it enters every so many steps. 1 is every step.
        network: LPIPS (Zhang 2018), whose backbone has to be fetched once, or ST-LPIPS (Ghildyal 2022), which comes
            with its wheel; both on AlexNet.
    """

    weight: float = 0.1
    every: int = 1
    network: Literal["lpips", "st_lpips"] = "st_lpips"

    def __post_init__(self) -> None:
        require_weight("perceptual.weight", self.weight)
        require_within("perceptual", self, every=(1, MOST_STEPS))


@dataclass(frozen=True)
class DiscriminatorSettings:
    """The PatchGAN of adversarial terms (Isola et al. 2017).

    Attributes:
        ndf: width of its first layer.
        layers: 3 see 70 x 70 pixels.
    """

    ndf: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        require_within("discriminator", self, ndf=(1, 512), layers=(1, 12))


@dataclass(frozen=True)
class Pix2PixSettings:
    """A U-Net generator against a PatchGAN (Isola et al. 2017). Defaults are the published ones.

    Attributes:
        ngf: width of the generator's first layer.
        downs: how often the generator halves the image; 8 for 256 pixels and their multiples.
        dropout: in the generator's innermost levels.
        l1, adversarial: weights of the generator's terms.
        gan_mode: the adversarial objective.
    """

    ngf: int = 64
    downs: int = 8
    norm: Literal["batch", "instance", "none"] = "batch"
    dropout: bool = True
    l1: float = 100.0
    adversarial: float = 1.0
    gan_mode: Literal["vanilla", "lsgan", "hinge"] = "vanilla"

    def __post_init__(self) -> None:
        require_within("pix2pix", self, ngf=(1, 512), downs=(5, 14))
        for name in ("l1", "adversarial"):
            require_weight(f"pix2pix.{name}", getattr(self, name))
        require(self.l1 + self.adversarial > 0, "pix2pix.l1", self.l1, "above 0 where pix2pix.adversarial is 0")
