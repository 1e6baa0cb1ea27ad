"""The keys of a trial's Tune config."""

from __future__ import annotations

PARAMETERS, ID, LABEL, SEED, GIVEN = "parameters", "id", "label", "seed", "given"
"""In this order: dotted setting name -> value; "t000"; the point's label; seed offset; whether it is a point."""
