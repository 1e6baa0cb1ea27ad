"""The interface through which a trial reports. The loop knows only this interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LossRow = tuple[int, Mapping[str, float]]
"""(step, tag -> value), tags `loss/<term>` raw, `weighted/<term>`, and `train/*`."""


@dataclass(frozen=True)
class Report:
    """One validation.

    Attributes:
        step: finished optimiser steps.
        metrics: `val/*` means over the validation set, `loss/*` and `weighted/*` means since the last report,
            `train/*` timings.
        losses: the terms step by step since the last report, every `log_every` steps.
    """

    step: int
    metrics: Mapping[str, float]
    losses: Sequence[LossRow]


Reporter = Callable[[Report, Callable[[Path], None]], None]
"""`report(row, write)` takes a report; if the trial is stopped, it may not return. `write(folder)` writes the
checkpoint and its images into a folder that the reporter chooses."""


class TrialDiverged(RuntimeError):
    """A loss term became NaN or infinite. The message names the step and the term."""
