"""The registry of methods. Importing it does not import torch, so that the command line checks names at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LatentKind = Literal["", "vq", "kl"]
COMMON = ("data", "pairs", "training", "metrics")


@dataclass(frozen=True)
class Entry:
    """Facts about a method that are needed before its code is imported.

    Attributes:
        path: its class, as "module:Class".
        latents: its latent space: VQ-f4's ("vq"), the base's ("kl"), or "" for none.
        reads: the sections of settings it reads, besides `COMMON`.
        gradient_checkpointing: whether its networks support it.
    """

    path: str
    latents: LatentKind
    reads: tuple[str, ...]
    gradient_checkpointing: bool = True

    @property
    def sections(self) -> frozenset[str]:
        return frozenset((*COMMON, *self.reads))


_RESSHIFT = ("autoencoder", "network", "resshift")
_DIFFUSION = ("diffusion", "ccsr", "perceptual")
_DECODER = ("base", "first_stage", "discriminator", "perceptual")

# One entry per method.
METHODS: dict[str, Entry] = {
    "resshift": Entry("trainables.methods.resshift:ResShift", "vq", (*_RESSHIFT, "resshift_loss")),
    "sinsr": Entry("trainables.methods.sinsr:SinSR", "vq", (*_RESSHIFT, "teacher", "sinsr")),
    "pix2pix": Entry("trainables.methods.pix2pix:Pix2Pix", "", ("pix2pix", "discriminator", "perceptual"), False),
    "latent_diffusion": Entry(
        "trainables.methods.latent_diffusion:LatentDiffusion", "kl", ("base", *_DIFFUSION, "conv_in", "lora")
    ),
    "controlnet_diffusion": Entry(
        "trainables.methods.controlnet_diffusion:ControlNetDiffusion", "kl", ("base", *_DIFFUSION, "controlnet")
    ),
    "stablesr": Entry("trainables.methods.stablesr:StableSR", "kl", ("base", *_DIFFUSION, "stablesr")),
    "one_step": Entry(
        "trainables.methods.one_step:OneStep", "kl", ("base", "one_step", "lora", "discriminator", "perceptual")
    ),
    "pixel_diffusion": Entry("trainables.methods.pixel_diffusion:PixelDiffusion", "", ("pixel", *_DIFFUSION)),
    "stablesr_cfw": Entry("trainables.methods.stablesr_cfw:StableSRCFW", "kl", (*_DECODER, "cfw"), False),
    "ccsr": Entry("trainables.methods.ccsr:CCSR", "kl", (*_DECODER, "ccsr")),
}
