"""One store of prepared data: a stage of one split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.shard_format import Column
from trainables.images.sources.photographs import Split

STAGE_OF = {
    "target": "pairs",
    "degraded": "pairs",
    "latent": "latents",
    "latent_degraded": "latents",
    "noise": "targets",
    "taught": "targets",
    "restored": "restored",
}

DRAWN = ("noise", "taught", "restored")
"""Columns that hold several noise draws of each pair."""

LATENTS_VERSION = 3
"""Part of what determines latents and what follows from them: raise it when the same inputs give others."""


@dataclass(frozen=True)
class Stage:
    """One store to make, or to find made.

    Attributes:
        rows: as planned; a photograph that turns out broken leaves its rows out.
        shard_rows: rows of every shard but the last.
    """

    name: str
    split: Split
    key: Mapping[str, Any]
    folder: StoreFolder
    rows: int
    shard_rows: int
    columns: Mapping[str, Column]

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
