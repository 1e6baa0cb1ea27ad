"""Settings of Pix2Pix, and of the perceptual and adversarial terms of several methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import MOST_STEPS, WEIGHT, require, require_within
from trainables.settings.setting import setting


@dataclass(frozen=True)
class PerceptualSettings:
    """The perceptual term on restored images.

    Attributes:
        weight: weight of the term; 0 leaves it out.
        every: steps from one use of the term to the next; 1 uses it in every step.
        network: "lpips" (Zhang 2018), which downloads AlexNet once (233 MiB); "lpips_vgg", the same with VGG-16
            (528 MiB), as published trainings use it; or "st_lpips" (Ghildyal 2022), which has its AlexNet in its wheel.
    """

    weight: float = setting(0.1, within=WEIGHT, when_restoring=0.0)
    every: int = setting(1, within=(1, MOST_STEPS), unless={"perceptual.weight": 0})
    network: Literal["lpips", "lpips_vgg", "st_lpips"] = setting("st_lpips", unless={"perceptual.weight": 0})

    def __post_init__(self) -> None:
        require_within("perceptual", self)


@dataclass(frozen=True)
class DiscriminatorSettings:
    """The PatchGAN of adversarial terms (Isola et al. 2017).

    Attributes:
        ndf: width of the first layer.
        layers: strided layers; 3 give a receptive field of 70 x 70 pixels.
    """

    ndf: int = setting(64, within=(1, 512))
    layers: int = setting(3, within=(1, 12))

    def __post_init__(self) -> None:
        require_within("discriminator", self)


@dataclass(frozen=True)
class Pix2PixSettings:
    """A U-Net generator trained with a PatchGAN (Isola et al. 2017). Defaults are the published ones.

    Attributes:
        ngf: width of the generator's first layer.
        downs: number of times the generator halves the image; 8 for 256 pixels and multiples of it.
        norm: normalisation of both networks: "batch", "instance" (over each image, without scale and shift),
            "instance_affine" (over each image, with a learned scale and shift: "batch" for a batch of one) or "none".
        dropout: use dropout in the generator's innermost levels.
        l1, adversarial: weights of the generator's L1 and adversarial terms.
        gan_mode: adversarial objective.
    """

    ngf: int = setting(64, within=(1, 512))
    downs: int = setting(8, within=(5, 14))
    norm: Literal["batch", "instance", "instance_affine", "none"] = "batch"
    dropout: bool = setting(True, unless={"pix2pix.downs": 5})
    l1: float = setting(100.0, within=WEIGHT, training_only=True)
    adversarial: float = setting(1.0, within=WEIGHT, training_only=True)
    gan_mode: Literal["vanilla", "lsgan", "hinge"] = setting("vanilla", training_only=True, adversarial=True)

    def __post_init__(self) -> None:
        require_within("pix2pix", self)
        require(self.l1 + self.adversarial > 0, "pix2pix.l1", self.l1, "a weight above 0 if pix2pix.adversarial is 0")
