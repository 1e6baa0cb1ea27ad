"""Latents restored by a finished first stage, on which StableSR's and CCSR's decoders are trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trainables.data.stages.stage import NOISE_STREAM, StageMaker, Values, pair_noise
from trainables.data.stores.shard_format import Column
from trainables.images.tensors import to_tensor
from trainables.methods.shared.first_stage import FirstStage, first_stage_settings
from trainables.pretrained.autoencoders import latent_shape
from trainables.pretrained.fetched import weights_at
from trainables.pretrained.identity import weights_fingerprint
from trainables.pretrained.shipped import first_stage_path
from trainables.settings import TrialSettings


class Restored(StageMaker):
    """Restores the latents of degraded images, `first_stage.draws` times per pair."""

    COLUMNS = ("restored",)
    DRAWN = True

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self._device, self._seed, self._draws = device, settings.data.seed, settings.first_stage.draws
        self._first_stage = FirstStage(settings, device)

    @staticmethod
    def key(settings: TrialSettings) -> dict[str, Any]:
        folder = first_stage_path(settings.first_stage.weights)
        key: dict[str, Any] = {"first_stage": weights_fingerprint(folder), "draws": settings.first_stage.draws}
        if prompts := first_stage_settings(settings).base.prompts:
            key["prompts"] = weights_fingerprint(weights_at("base.prompts", prompts))
        if settings.method == "ccsr":
            ccsr = settings.ccsr
            key |= {"steps": ccsr.steps, "t_max": ccsr.t_max, "t_min": ccsr.t_min}
        return key

    @classmethod
    def columns(cls, settings: TrialSettings, size: int) -> dict[str, Column]:
        return {"restored": Column("float16", (settings.first_stage.draws, *latent_shape(settings).of(size)))}

    def __call__(self, before: Values, rows: range) -> Values:
        x0, y = (to_tensor(before[name], self._device) for name in ("latent", "latent_degraded"))
        restored = []
        for draw in range(self._draws):
            noise = np.stack([pair_noise(self._seed, row, draw, y.shape[1:]) for row in rows])
            keys = [(self._seed, NOISE_STREAM, row, draw) for row in rows]
            restored.append(self._first_stage(y, to_tensor(noise, self._device), keys, x0).float().cpu().numpy())
        return {"restored": np.stack(restored, 1)}
