"""The interface through which a trial reports. The loop knows only this interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.common.errors import CannotRun
from trainables.training.measurements import Validation

if TYPE_CHECKING:  # it imports the networks, and this module is read where none is needed
    from trainables.training.best_step import BestStep

LossRow = tuple[int, Mapping[str, float]]
"""(step, tag -> value), tags `loss/<term>` raw, `weighted/<term>`, and `train/*`."""


@dataclass(frozen=True)
class Report:
    """One validation, with all its measurements.

    Attributes:
        step: finished optimiser steps.
        metrics: `val/*` means over the validation set, `test/*` over the test set, `loss/*` and `weighted/*` means
            since the last report, `train/*` timings, and what `usage.Usage.take` gives.
        losses: the terms step by step since the last report, every `log_every` steps.
        validation: the values of every image, and the picture.
        test: the same of the test images; only in the last report of a trial of the confirmation.
            With `training.keep=best` they are those of the best step.
        best: the best step so far; None without `training.keep=best`.
        start: whether a training begins with it, at step 0. It needs no checkpoint: it can be made again at once.
        repeated: whether a continued trial sends its checkpoint's report again, because the driver may have ended
            before it received it.
        reached: finished steps, if there are more of them than the trial has reported: it leaves its machine, or its
            last checkpoint is too old. Only a checkpoint is written, with this report, and nothing is sent. Before the
            first report, this one is empty.
    """

    step: int
    metrics: Mapping[str, float]
    losses: Sequence[LossRow]
    validation: Validation
    repeated: bool = False
    test: Validation | None = None
    start: bool = False
    best: BestStep | None = None
    reached: int | None = None


Reporter = Callable[[Report, Callable[[Path], None]], None]
"""`report(row, write)` takes a report; if the trial is stopped, it does not return. `write(folder)` writes the
checkpoint into a folder that the reporter chooses."""


class MachineLeaving(RuntimeError):
    """The machine will be taken away. The trial continues on another one, from the checkpoint that it has just written
    if it has trained."""


class TrialDiverged(RuntimeError):
    """A loss term became NaN or infinite. The message names the step and the term."""


class NodeUnfit(CannotRun):
    """A node can train no trial of this sweep, and others may: it does not see the run's folder or the prepared data,
    or cannot read them from their bucket, or its own disk is full. The message names the node, the folder and what is
    wrong.
    """
