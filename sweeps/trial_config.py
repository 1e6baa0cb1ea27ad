"""The keys of a trial's config, as Tune carries it."""

from __future__ import annotations

PARAMETERS, ID, LABEL, SEED, GIVEN = "parameters", "id", "label", "seed", "given"
"""Keys of a trial's Tune config: dotted name -> value; "t000"; the point's label; seed offset; a point of the space."""
