"""The registered stages, and the stage of each column."""

from __future__ import annotations

from trainables.data.stages import pairs
from trainables.data.stages.latents import Latents
from trainables.data.stages.restored import Restored
from trainables.data.stages.stage import StageMaker
from trainables.data.stages.targets import Targets

# One line per stage, after its inputs. All but `latents` are made from latents, for training only.
MAKERS: dict[str, type[StageMaker]] = {
    "latents": Latents,
    "targets": Targets,
    "restored": Restored,
}
STAGE_OF = dict.fromkeys(pairs.COLUMNS, "pairs") | {
    column: name for name, maker in MAKERS.items() for column in maker.COLUMNS
}
DRAWN = frozenset(column for maker in MAKERS.values() if maker.DRAWN for column in maker.COLUMNS)
"""Columns with several noise draws per pair."""
