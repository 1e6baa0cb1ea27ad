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

import torch
from torch import Tensor

from trainables.common.errors import InputError
from trainables.data.prepared import Prepared
from trainables.images.tensors import upsample
from trainables.metrics import build_metrics
from trainables.pretrained.autoencoders import load_latents
from trainables.pretrained.resshift import build_diffusion, load_teacher
from trainables.settings import TrialSettings
from trainables.training.validation import Restore, Validation, validate

LATENT_CONTROLS = frozenset({"input_latent", "autoencoder"})


def measure_controls(
    names: Sequence[str],
    settings: TrialSettings,
    prepared: Prepared,
    metric_names: Sequence[str],
    device: torch.device | str = "cpu",
    done: Callable[[str, Validation], None] = lambda name, validation: None,
    draw: int = 0,
) -> dict[str, Validation]:
    """Measures every control over the whole validation set; calls `done` after each.

    Args:
        draw: index of the noise from which each pair is restored.

    Raises:
        InputError: an unknown control.
    """
    device = torch.device(device)
    metrics = build_metrics(metric_names, device)
    measured = {}
    for name in names:
        restore = _control(name, settings, device)
        measured[name] = validate(restore, prepared, metrics, settings.training.validation_batch, device, draw)
        done(name, measured[name])
    return measured


def _control(name: str, settings: TrialSettings, device: torch.device) -> Restore:
    def enlarged(batch: dict[str, Tensor]) -> Tensor:
        return upsample(batch["degraded"], settings.pairs.scale)

    if name == "bicubic":
        return lambda batch: enlarged(batch) * 0.5 + 0.5
    autoencoder = load_latents(settings, device)

    def to_image(latent: Tensor) -> Tensor:
        return autoencoder.decode(latent) * 0.5 + 0.5

    if name == "input_latent":
        return lambda batch: to_image(autoencoder.encode(enlarged(batch)))
    if name == "autoencoder":
        return lambda batch: to_image(autoencoder.encode(batch["target"]))
    diffusion = build_diffusion(settings.resshift)
    if name not in ("teacher_1", f"teacher_{diffusion.steps}"):
        known = ("bicubic", "input_latent", "autoencoder", "teacher_1")
        raise InputError(f"control {name!r}: expected {', '.join(known)} or teacher_{diffusion.steps}")
    teacher = load_teacher(settings, device)
    sample = diffusion.predict_from_prior if name == "teacher_1" else diffusion.sample_ddim

    def restore(batch: dict[str, Tensor]) -> Tensor:
        degraded = batch["degraded"]
        return to_image(sample(lambda x, t: teacher(x, t, lq=degraded), batch["latent_degraded"], batch["noise"]))

    return restore
