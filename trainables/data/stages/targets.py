"""Targets that the ResShift teacher restores from given noise; a SinSR student distils them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from trainables.data.stages.stage import StageMaker, Values, pair_noise
from trainables.data.stores.shard_format import Column
from trainables.images.tensors import to_tensor
from trainables.pretrained.autoencoders import latent_shape
from trainables.pretrained.identity import weights_fingerprint
from trainables.pretrained.resshift import build_diffusion, load_teacher
from trainables.pretrained.shipped import teacher_path
from trainables.settings import TrialSettings


class Targets(StageMaker):
    """Samples the teacher with all its steps, `sinsr.draws` times per pair."""

    COLUMNS = ("noise", "taught")
    DRAWN = True

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self._device, self._seed, self._draws = device, settings.data.seed, settings.sinsr.draws
        self._teacher, self._diffusion = load_teacher(settings, device), build_diffusion(settings.resshift)

    @staticmethod
    def key(settings: TrialSettings) -> dict[str, Any]:
        schedule = settings.resshift.schedule
        if settings.resshift.bounded:  # left out for the schedules of version 0.1, whose keys had none
            del schedule["bounded"]
        return {
            "teacher": weights_fingerprint(teacher_path(settings.teacher.weights)),
            "network": dataclasses.asdict(settings.network),
            "diffusion": schedule,
            "draws": settings.sinsr.draws,
        }

    @classmethod
    def columns(cls, settings: TrialSettings, size: int) -> dict[str, Column]:
        shape = (settings.sinsr.draws, *latent_shape(settings).of(size))
        return dict.fromkeys(cls.COLUMNS, Column("float16", shape))

    def __call__(self, before: Values, rows: range) -> Values:
        degraded, y = (to_tensor(before[name], self._device) for name in ("degraded", "latent_degraded"))
        noises, taught = [], []
        for draw in range(self._draws):
            # As it is stored: the chain of a well-trained teacher enlarges a rounding of its start tenfold.
            noises.append(np.stack([pair_noise(self._seed, row, draw, y.shape[1:]) for row in rows]).astype(np.float16))
            noise = to_tensor(noises[-1], self._device)
            x0 = self._diffusion.sample_ddim(lambda x, t: self._teacher(x, t, lq=degraded), y, noise)
            taught.append(x0.float().cpu().numpy())
        return {"noise": np.stack(noises, 1), "taught": np.stack(taught, 1)}
