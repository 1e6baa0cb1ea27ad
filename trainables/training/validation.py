"""Validation: restores the validation set and measures each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainables.data.batches import validation_batches
from trainables.data.prepared import Prepared
from trainables.images.tensors import to_pixels
from trainables.metrics import MetricSet
from trainables.metrics.stability import measure_stability
from trainables.training.measurements import Validation, encode_png
from trainables.training.pictures import Pictures, evenly_spaced, kept_rows

GRID_IMAGES = 4
TEST_DRAW = 2**30
"""Index of the first noise of test images, so that none is restored from the noise of a validation image."""


Restore = Callable[[dict[str, Tensor]], Tensor]
"""A validation batch -> restored images (B, 3, H, W), nominally in [0, 1]."""


@torch.no_grad()
def validate(
    restore: Restore,
    prepared: Prepared,
    metrics: MetricSet,
    batch: int,
    device: torch.device,
    draw: int = 0,
    draws: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Validation:
    """Measures `restore` over the whole validation set.

    Args:
        draw: index of the noise from which each pair is restored.
        draws: with 2 or more, every pair is restored from this many noises. The first of them is `draw`, and only its
            restoration gets the metrics; the differences between the restorations are measured too.
        rank, world: this worker among those that share the batches; each worker returns the whole result.
    """
    parts: dict[int, dict[str, Tensor]] = {}  # first row of a batch -> values
    shown: list[int] | None = None
    pictures: dict[int, np.ndarray] = {}
    noises = (validation_batches(prepared, batch, device, draw + k, rank, world) for k in range(draws))
    for pairs, *others in zip(*noises, strict=True):
        target = pairs["target"] * 0.5 + 0.5
        restorations = torch.stack([restore(one).float().clamp(0, 1) for one in (pairs, *others)])
        values = [metrics(restored, target) for restored in restorations]
        measured = values[0] | (measure_stability(values, restorations) if others else {})
        rows = pairs["noise_key"][:, 0].tolist()
        shown = kept_rows(prepared.validation_rows, *target.shape[-2:]) if shown is None else shown
        parts[rows[0]] = {name: value.cpu() for name, value in measured.items()}
        for k, row in enumerate(rows):
            if row in shown:
                degraded = F.interpolate(pairs["degraded"][k : k + 1] * 0.5 + 0.5, target.shape[-2:], mode="nearest")
                both = torch.cat([degraded[0].clamp(0, 1), restorations[0, k], target[k]], dim=2)
                pictures[row] = to_pixels(both)
    if world > 1:
        parts, pictures = _of_all(parts, world), _of_all(pictures, world)
    ordered = [parts[row] for row in sorted(parts)]
    per_image = {name: torch.cat([part[name] for part in ordered]).numpy() for name in ordered[0]}
    names, kept = prepared.validation_names, sorted(pictures)
    grid = np.concatenate([pictures[kept[k]] for k in sorted(set(evenly_spaced(len(kept), GRID_IMAGES)))])
    kept_pictures = Pictures([names[row] for row in kept], np.stack([pictures[row] for row in kept]))
    return Validation(per_image, names, encode_png(grid), kept_pictures)


def _of_all(own: dict[int, Any], world: int) -> dict[int, Any]:
    """The results of all workers, by row."""
    found: list[dict[int, Any]] = [{}] * world
    dist.all_gather_object(found, own)
    return {row: value for theirs in found for row, value in theirs.items()}
