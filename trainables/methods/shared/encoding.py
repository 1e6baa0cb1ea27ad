"""Latents of a training batch that are not prepared: encoded in the step, without a gradient."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor

from trainables.images.tensors import rows_at_once, upsample
from trainables.methods.method import Batch, Method
from trainables.pretrained.autoencoders import Autoencoder
from trainables.settings import TrialSettings

IMAGE_OF = {"latent": "target", "latent_degraded": "degraded"}
"""Column of latents -> the images that it is encoded from."""
UNDAMAGED = "undamaged"
"""Column: 1 for a pair whose input is its target, which the degraded image, of another size, cannot say."""


def degrades_online(settings: TrialSettings) -> bool:
    """Whether the pairs of a training batch are degraded when it is read."""
    return settings.pairs.degrades_online("train") and settings.training.max_steps > 0


def encoded_columns(settings: TrialSettings, columns: Collection[str]) -> frozenset[str]:
    """Of a method's `columns`, and of what they are made from, those that are encoded in the step.

    The target's latent stays prepared if the target stays as it is.
    """
    if not degrades_online(settings):
        return frozenset()
    own_size = _at_own_size(settings, columns)
    fresh = {"latent_degraded"} if settings.pairs.flips == "none" else set(IMAGE_OF)
    return frozenset(fresh & (set(columns) | ({"latent"} if own_size else set())))


def batch_columns(settings: TrialSettings, columns: Collection[str]) -> frozenset[str]:
    """The columns of a training batch from which a method's `columns` are made: with `pairs.degraded=online`, images in
    place of the latents that are encoded in the step.
    """
    encoded, own_size = encoded_columns(settings, columns), _at_own_size(settings, columns)
    read = set(columns) | ({UNDAMAGED, "latent"} if own_size else set())
    return frozenset(IMAGE_OF[name] if name in encoded else name for name in read)


def _at_own_size(settings: TrialSettings, columns: Collection[str]) -> bool:
    """Whether targets are to replace degraded images, which have another size, so that only latents can be replaced."""
    pairs = settings.pairs
    return degrades_online(settings) and pairs.undamaged > 0 and pairs.scale > 1 and "latent_degraded" in columns


class Encoding:
    """Adds the latents that a method reads to a batch of `batch_columns`, as preparation encodes them, but for its
    rounding to float16. The batch of a method whose latents are prepared is returned unchanged.
    """

    def __init__(self, method: Method) -> None:
        settings = method.settings
        self._wanted = encoded_columns(settings, method.columns(settings))
        self._scale_of = {"latent": 1, "latent_degraded": settings.pairs.scale}
        if self._wanted:  # methods on latents hold their autoencoder under this name
            self._autoencoder = cast("Autoencoder", method.named_parts["autoencoder"])

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        latents = {name: self._encoded(batch[IMAGE_OF[name]], self._scale_of[name]) for name in self._wanted}
        if UNDAMAGED in batch:
            clean, found = batch[UNDAMAGED].bool()[:, None, None, None], {**batch, **latents}
            latents["latent_degraded"] = torch.where(clean, found["latent"], found["latent_degraded"])
        return {**batch, **latents} if latents else batch

    def _encoded(self, images: Tensor, scale: int) -> Tensor:
        at_once = rows_at_once(images.shape[-1] * scale)
        parts = (part if scale == 1 else upsample(part, scale) for part in images.split(at_once))
        return torch.cat([self._autoencoder.encode(part) for part in parts])
