"""Adversarial losses on a discriminator's logits, and their adaptive weight for a decoder.

As in the training of pix2pix (Isola et al., CVPR 2017) and VQGAN (Esser et al., CVPR 2021). All are computed in
float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.common.errors import InputError
from trainables.networks.pix2pix import PatchGAN
from trainables.settings import TrialSettings

GAN_MODE = "hinge"
"""Of the methods that fine-tune a pretrained network."""
_GRADIENT_SCALE = 2.0**10


def discriminator_loss(mode: str, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's loss, a scalar: the mean of its losses on real and on generated images.

    Args:
        mode: "vanilla" (binary cross-entropy; Goodfellow et al., 2014), "lsgan" (squared distance to 1 for real and
            0 for fake; Mao et al., 2017) or "hinge" (Lim and Ye, 2017).
        real_logits: logits of any shape for real images.
        fake_logits: logits for generated images, which should be detached.

    Raises:
        InputError: an unknown mode.
    """
    real, fake = real_logits.float(), fake_logits.float()
    match mode:
        case "vanilla":
            return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
        case "lsgan":
            return ((real - 1).square().mean() + fake.square().mean()) / 2
        case "hinge":
            return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    raise _unknown(mode)


def generator_loss(mode: str, fake_logits: Tensor) -> Tensor:
    """The generator's loss, a scalar; for "vanilla" the non-saturating form.

    Args:
        mode: as for `discriminator_loss`.
        fake_logits: logits of any shape for generated images.

    Raises:
        InputError: an unknown mode.
    """
    fake = fake_logits.float()
    match mode:
        case "vanilla":
            return F.softplus(-fake).mean()
        case "lsgan":
            return (fake - 1).square().mean()
        case "hinge":
            return -fake.mean()
    raise _unknown(mode)


def _unknown(mode: str) -> InputError:
    return InputError.of("adversarial mode", mode, "vanilla, lsgan or hinge")


def check_discriminator(settings: TrialSettings) -> None:
    """Refuses a discriminator with too many layers for the training images.

    Raises:
        InputError: naming `discriminator.layers`.
    """
    layers, size = settings.discriminator.layers, settings.pairs.image_size
    if PatchGAN.least_side(layers) > size:
        fits = max((fewer for fewer in range(1, layers) if PatchGAN.least_side(fewer) <= size), default=0)
        raise InputError(f"discriminator.layers={layers}: expected at most {fits} for pairs.image_size={size}")


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: nn.Parameter, max: float = 1e4
) -> Tensor:
    """The weight for which the adversarial loss has the same gradient norm as the reconstruction loss.

    The ratio of both gradient norms at the decoder's last layer: `lambda` of VQGAN's equation 7, with 1e-4 in the
    denominator as in its code; a scalar in [0, max] without gradient. The graphs of both losses are kept.

    Args:
        reconstruction_loss: a scalar that depends on `last_layer`.
        adversarial_loss: `generator_loss`, unweighted, of the same reconstruction.
        last_layer: the weight of the decoder's last convolution.
        max: upper bound of the weight, for a discriminator with very small gradients.
    """
    # Scaled as the trainer scales the whole loss: in fp16, gradients of means over many pixels would become 0. A power
    # of two changes no digit in other precisions.
    norms = [
        torch.autograd.grad(loss * _GRADIENT_SCALE, last_layer, retain_graph=True)[0].norm() / _GRADIENT_SCALE
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, max).detach()
