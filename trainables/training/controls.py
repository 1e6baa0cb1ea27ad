"""Controls: untrained reference methods, with which every answer is compared.

| name | restores with |
|---|---|
| `bicubic` | bicubic upsampling of the degraded image; the degraded image itself if it is as large as the target |
| `input_latent` | the enlarged degraded image, encoded and decoded: a latent method that changes nothing |
| `autoencoder` | the reconstruction of the target by the method's autoencoder: the upper bound of every latent method |
| `teacher_N` | the ResShift teacher, deterministically: N = 1 predicts once from the prior, N = steps runs the chain |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from trainables.common.errors import InputError
from trainables.data.prepared import Prepared
from trainables.images.tensors import upsample
from trainables.metrics import build_metrics
from trainables.networks.swin_unet import SwinUNet
from trainables.pretrained.autoencoders import Autoencoder, load_latents
from trainables.pretrained.resshift import build_diffusion, load_teacher
from trainables.settings import TrialSettings
from trainables.training.measurements import Validation
from trainables.training.validation import TEST_DRAW, Restore, validate

LATENT_CONTROLS = frozenset({"input_latent", "autoencoder"})


class Measured(NamedTuple):
    """What a control restored: the validation images, and the test images if there are any."""

    validation: Validation
    test: Validation | None


def measure_controls(
    names: Sequence[str],
    settings: TrialSettings,
    prepared: Prepared,
    metric_names: Sequence[str],
    device: torch.device | str = "cpu",
) -> dict[str, Measured]:
    """Measures every control over all validation images, and over the test images if `prepared` has them.

    Raises:
        InputError: an unknown control.
    """
    device = torch.device(device)
    metrics = build_metrics(metric_names, device, settings.metrics.border)
    controls = _Controls(settings, device)

    def measure(restore: Restore, pairs: Prepared, draw: int = 0) -> Validation:
        return validate(restore, pairs, metrics, settings.training.validation_batch, device, draw)

    measured = {}
    for name in names:
        restore = controls.named(name)
        test = measure(restore, prepared.test, TEST_DRAW) if prepared.test else None
        measured[name] = Measured(measure(restore, prepared), test)
    return measured


class _Controls:
    """The controls of a trial's settings. Each network is loaded once, when the first control needs it."""

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.diffusion = build_diffusion(settings.resshift)

    def named(self, name: str) -> Restore:
        """How a control restores a batch.

        Raises:
            InputError: an unknown control.
        """
        whole_chain = f"teacher_{self.diffusion.steps}"
        known: dict[str, Restore] = {
            "bicubic": lambda batch: self._enlarged(batch) * 0.5 + 0.5,
            "input_latent": lambda batch: self._decoded(self._autoencoder.encode(self._enlarged(batch))),
            "autoencoder": lambda batch: self._decoded(self._autoencoder.encode(batch["target"])),
            "teacher_1": lambda batch: self._taught(batch, self.diffusion.predict_from_prior),
            whole_chain: lambda batch: self._taught(batch, self.diffusion.sample_ddim),
        }
        if name not in known:
            raise InputError(f"control {name!r}: expected {', '.join(list(known)[:-1])} or {whole_chain}")
        return known[name]

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        return load_latents(self.settings, self.device)

    @cached_property
    def _teacher(self) -> SwinUNet:
        return load_teacher(self.settings, self.device)

    def _enlarged(self, batch: dict[str, Tensor]) -> Tensor:
        return upsample(batch["degraded"], self.settings.pairs.scale)

    def _decoded(self, latent: Tensor) -> Tensor:
        return self._autoencoder.decode(latent) * 0.5 + 0.5

    def _taught(self, batch: dict[str, Tensor], sample: Callable[..., Tensor]) -> Tensor:
        def teacher(x: Tensor, t: Tensor) -> Tensor:
            return self._teacher(x, t, lq=batch["degraded"])

        return self._decoded(sample(teacher, batch["latent_degraded"], batch["noise"]))
