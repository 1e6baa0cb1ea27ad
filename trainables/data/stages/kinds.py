"""The stages there are, and which one holds a column."""

from __future__ import annotations

from trainables.data.stages import pairs
from trainables.data.stages.latents import Latents
from trainables.data.stages.restored import Restored
from trainables.data.stages.stage import StageMaker
from trainables.data.stages.targets import Targets

# One line a stage, after those it is made from. All but `latents` are made from latents, for training alone.
MAKERS: dict[str, type[StageMaker]] = {
    "latents": Latents,
    "targets": Targets,
    "restored": Restored,
}
STAGE_OF = dict.fromkeys(pairs.COLUMNS, "pairs") | {
    column: name for name, maker in MAKERS.items() for column in maker.COLUMNS
}
DRAWN = frozenset(column for maker in MAKERS.values() if maker.DRAWN for column in maker.COLUMNS)
"""Columns that hold several noise draws of each pair."""
