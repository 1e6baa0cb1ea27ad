"""Autoencoders of the methods: which one a method uses, and the shape of its latents.

The shape is that of settings and of a base's description. Only what loads an autoencoder imports diffusers, which takes
each process three to four seconds: processes of a method on pixels do without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainables.pretrained.base_model import find_base, load_vae, read_shape
from trainables.pretrained.shipped import autoencoder_path
from trainables.pretrained.weights_file import reading
from trainables.settings import TrialSettings
from trainables.settings.checks import require
from trainables.settings.methods import METHODS

if TYPE_CHECKING:
    from diffusers import VQModel


@dataclass(frozen=True)
class LatentShape:
    """Channels of a latent, and image pixels per latent pixel along one side. For methods on pixels: (3, 1)."""

    channels: int
    factor: int

    def of(self, size: int) -> tuple[int, int, int]:
        """(C, H, W) of the latent of a square image."""
        return self.channels, size // self.factor, size // self.factor


Coder = Callable[[Tensor], Tensor]


class Autoencoder(nn.Module):
    """A frozen autoencoder, in evaluation mode.

    Attributes:
        encode: images (B, 3, H, W) in [-1, 1] -> latents, scaled as the diffusion model uses them.
        decode: such latents -> images in about [-1, 1], not clamped.
    """

    def __init__(self, network: nn.Module, encode: Coder, decode: Coder) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.encode, self.decode = encode, decode


def latent_shape(settings: TrialSettings) -> LatentShape:
    """The shape of the latents of the trial's method; reads no weights."""
    kind = METHODS[settings.method].latents
    if kind == "vq":
        return LatentShape(settings.network.latent_channels, settings.autoencoder.factor)
    if kind == "kl":
        shape = read_shape(find_base(settings.base.weights, settings.base.revision))
        return LatentShape(shape.latent_channels, shape.factor)
    return LatentShape(3, 1)


def load_latents(settings: TrialSettings, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of the trial's method.

    Raises:
        InputError: its weights are missing or cannot be loaded.
    """
    if METHODS[settings.method].latents == "kl":
        from trainables.networks.stable_diffusion import decode_kl, encode_kl

        vae = load_vae(find_base(settings.base.weights, settings.base.revision)).to(device)
        if settings.training.gradient_checkpointing:  # of the decoder: the perceptual loss backpropagates through it
            vae.enable_gradient_checkpointing()
        return Autoencoder(vae, lambda images: encode_kl(vae, images), lambda latents: decode_kl(vae, latents))
    from trainables.networks import autoencoder as vq

    model = load_autoencoder(settings.autoencoder.weights, device)
    require(
        model.config.latent_channels == settings.network.latent_channels,
        "network.latent_channels",
        settings.network.latent_channels,
        f"{model.config.latent_channels}, as autoencoder.weights={settings.autoencoder.weights} has",
    )
    return Autoencoder(model, lambda images: vq.encode(model, images), lambda latents: vq.decode(model, latents))


def load_autoencoder(weights: str, device: torch.device | str = "cpu") -> VQModel:
    """The frozen autoencoder, in evaluation mode."""
    from trainables.networks.autoencoder import load_vq_f4

    path = autoencoder_path(weights)
    with reading("autoencoder.weights", path, "a VQ-f4 autoencoder"):
        model = load_vq_f4(path)
    return model.to(device).eval().requires_grad_(False)
