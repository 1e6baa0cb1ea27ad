"""A stage of prepared data, and the interface of the classes that make its rows.

Each stage is a store with a key of everything that determines it, so a change remakes only this stage and later ones:

    pairs (photographs, crops, degradation) -> latents (autoencoder) -> targets (ResShift teacher, noise draws)
                                                                     -> restored (finished first stage, noise draws)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.shard_format import Column
from trainables.settings import TrialSettings
from trainables.settings.pairs import Split

NOISE_STREAM = 7
"""Random stream of the data seed for the noise of training pairs."""
Values = dict[str, np.ndarray]
"""Column -> (rows, *shape)."""


@dataclass(frozen=True)
class Stage:
    """One store to make, or already made.

    Attributes:
        rows: as planned; a photograph that is found broken leaves its rows out.
        shard_rows: rows of every shard but the last.
        variant: of the training pairs, from 0; epoch e of a trial reads variant e mod `pairs.variants`.
    """

    name: str
    split: Split
    key: Mapping[str, Any]
    folder: StoreFolder
    rows: int
    shard_rows: int
    columns: Mapping[str, Column]
    variant: int = 0

    @property
    def label(self) -> str:
        """Split, name and variant: "train latents", "train latents #1"."""
        return f"{self.split} {self.name}" + (f" #{self.variant}" if self.variant else "")

    @property
    def exists(self) -> bool:
        return self.folder.complete

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    @property
    def bytes_per_row(self) -> int:
        """Without the few bytes of a pair's name."""
        return sum(column.bytes_per_row for column in self.columns.values())

    @property
    def bytes(self) -> int:
        return self.rows * self.bytes_per_row


class StageMaker(ABC):
    """Makes the rows of one stage from those of the stages before it; loads its networks in `__init__`.

    To add a stage: one file with a subclass, and one line in `kinds.py`.
    """

    COLUMNS: ClassVar[tuple[str, ...]]
    DRAWN: ClassVar[bool] = False
    """Whether its columns have several noise draws per pair, (rows, draws, C, H, W)."""

    @abstractmethod
    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        """Raises InputError if weights are missing or cannot be loaded."""

    @staticmethod
    @abstractmethod
    def key(settings: TrialSettings) -> dict[str, Any]:
        """The settings that determine its values, without those of the stage before."""

    @classmethod
    @abstractmethod
    def columns(cls, settings: TrialSettings, size: int) -> dict[str, Column]:
        """Its columns for images of `size` pixels a side."""

    @abstractmethod
    def __call__(self, before: Values, rows: range) -> Values:
        """The columns of these rows.

        Args:
            before: columns of the earlier stages, for these rows.
            rows: their numbers in the split. Those of a later variant continue those of the one before.
        """


def pair_noise(seed: int, row: int, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The standard normal noise of one draw for one training pair, float16; equal on every machine."""
    stream = [seed, NOISE_STREAM, row, draw]
    return np.random.default_rng(stream).standard_normal(tuple(shape), np.float32).astype(np.float16)
