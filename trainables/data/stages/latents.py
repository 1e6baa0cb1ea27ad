"""Latents of targets and of upsampled degraded images, encoded by the trial's autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from trainables.data.stages.stage import StageMaker, Values
from trainables.data.stores.shard_format import Column
from trainables.images.tensors import to_tensor, upsample
from trainables.pretrained.autoencoders import latent_shape, load_latents
from trainables.pretrained.identity import autoencoder_fingerprint
from trainables.settings import TrialSettings

LATENTS_VERSION = 3
"""Part of the key of latents and of later stages: increase it when the same inputs give other latents."""


class Latents(StageMaker):
    """Encodes each image once, in float16; only targets where pairs are degraded when they are read."""

    COLUMNS = ("latent", "latent_degraded")

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self._scale, self._device = settings.pairs.scale, device
        self._autoencoder = load_latents(settings, device)

    @staticmethod
    def key(settings: TrialSettings) -> dict[str, Any]:
        return {"latents": LATENTS_VERSION, "autoencoder": autoencoder_fingerprint(settings)}

    @classmethod
    def columns(cls, settings: TrialSettings, size: int) -> dict[str, Column]:
        return dict.fromkeys(cls.COLUMNS, Column("float16", latent_shape(settings).of(size)))

    def __call__(self, before: Values, rows: range) -> Values:
        found = {"latent": self._autoencoder.encode(to_tensor(before["target"], self._device)).cpu().numpy()}
        if "degraded" in before:
            degraded = upsample(to_tensor(before["degraded"], self._device), self._scale)
            found["latent_degraded"] = self._autoencoder.encode(degraded).cpu().numpy()
        return found
