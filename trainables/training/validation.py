"""Validation: restores the validation set and measures each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainables.common.parquet import read_table
from trainables.data.batches import validation_batches
from trainables.data.prepared import Prepared
from trainables.metrics import MetricSet
from trainables.metrics.names import test_name
from trainables.metrics.stability import measure_stability
from trainables.training.pictures import Pictures, evenly_spaced, kept_rows

GRID_IMAGES = 4
TEST_DRAW = 2**30
"""Index of the first noise of test images, so that none is restored from the noise of a validation image."""
PER_IMAGE, GRID = "per_image.parquet", "grid.png"


@dataclass
class Validation:
    """The result of a validation.

    Attributes:
        per_image: metric name -> (N,) values in the order of `images`.
        images: names of the validation pairs.
        grid: uint8 (H, W, 3), one row of input | output | target for each of a few evenly spaced pairs.
        pictures: these of more pairs; None if the validation was read or received, not measured.
    """

    per_image: dict[str, np.ndarray]
    images: list[str]
    grid: np.ndarray
    pictures: Pictures | None = None

    @property
    def test_means(self) -> dict[str, float]:
        """The means under the names of test metrics, `test/*`."""
        return {test_name(name): mean for name, mean in self.means.items()}

    @property
    def means(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.per_image.items()}

    def write(self, folder: Path, step: int) -> None:
        """The table and the picture as files in an existing folder, for people to look at."""
        table = {"step": [step] * len(self.images), "image": self.images, **self.per_image}
        pq.write_table(pa.table(table), folder / PER_IMAGE)
        Image.fromarray(self.grid).save(folder / GRID)

    @classmethod
    def read(cls, folder: Path) -> Validation:
        """What `write` wrote."""
        table = read_table(folder / PER_IMAGE)
        names = [name for name in table.column_names if name not in ("step", "image")]
        per_image = {name: table[name].to_numpy() for name in names}
        return cls(per_image, table["image"].to_pylist(), np.asarray(Image.open(folder / GRID).convert("RGB")))


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
                pictures[row] = (both * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    if world > 1:
        parts, pictures = _of_all(parts, world), _of_all(pictures, world)
    ordered = [parts[row] for row in sorted(parts)]
    per_image = {name: torch.cat([part[name] for part in ordered]).numpy() for name in ordered[0]}
    names, kept = prepared.validation_names, sorted(pictures)
    grid = np.concatenate([pictures[kept[k]] for k in sorted(set(evenly_spaced(len(kept), GRID_IMAGES)))])
    kept_pictures = Pictures([names[row] for row in kept], np.stack([pictures[row] for row in kept]))
    return Validation(per_image, names, grid, kept_pictures)


def _of_all(own: dict[int, Any], world: int) -> dict[int, Any]:
    """The results of all workers, by row."""
    found: list[dict[int, Any]] = [{}] * world
    dist.all_gather_object(found, own)
    return {row: value for theirs in found for row, value in theirs.items()}
