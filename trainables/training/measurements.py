"""The result of a validation, and the metric by which it is judged. This module imports no network."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainables.common.parquet import read_table
from trainables.metrics.names import test_name
from trainables.training.pictures import Pictures

PER_IMAGE, GRID = "per_image.parquet", "grid.png"


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class KeptBy(NamedTuple):
    """The metric that decides, "val/psnr", and whether larger values are better."""

    metric: str
    larger: bool


@dataclass
class Validation:
    """The result of a validation.

    Attributes:
        per_image: metric name -> (N,) values in the order of `images`.
        images: names of the validation pairs.
        grid: a PNG, RGB, one row of input | output | target for each of a few evenly spaced pairs. It is encoded once,
            by the trial; the driver only passes it on.
        pictures: these of more pairs; None if the validation was read or received, not measured.
    """

    per_image: dict[str, np.ndarray]
    images: list[str]
    grid: bytes
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
        (folder / GRID).write_bytes(self.grid)

    @classmethod
    def read(cls, folder: Path) -> Validation:
        """What `write` wrote."""
        table = read_table(folder / PER_IMAGE)
        names = [name for name in table.column_names if name not in ("step", "image")]
        per_image = {name: table[name].to_numpy() for name in names}
        return cls(per_image, table["image"].to_pylist(), (folder / GRID).read_bytes())
