"""The keys of a trial's Tune config."""

from __future__ import annotations

PARAMETERS, ID, LABEL, SEED, GIVEN, KIND = "parameters", "id", "label", "seed", "given", "kind"
"""In this order: dotted setting name -> value; "t000"; the point's label; seed offset; whether it always runs all
steps; a kind of `sweeps.recording.tables`. Runs of version 0.1 have no kind: their trials are of the search."""

SEARCHED = "searched"
"""Of a trial of the confirmation: the number of trials of the search among which its configuration was chosen."""

TRIAL, CONFIRMATION = "trial", "confirmation"
"""The kinds of trials: of the search, and of the confirmation after it."""

AVOIDED = "avoided"
"""Of a trial with several workers: ids of nodes on which they must not run."""
