"""The results that Ray carries from a trial to the driver: their keys, and a report as one."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainables.training.measurements import Validation
from trainables.training.reporting import Report

LOSSES, VALIDATION, TEST, REPEATED = "losses", "validation", "test", "repeated"
"""Keys of a result besides the metrics: rows of loss terms, the values of every image, those of every test image, and
whether a continued trial sends the report of its checkpoint again."""
BEST = "best"
"""Key of a result with `training.keep=best`: [best step so far, its validation metrics]. The values of every image are
those of this step."""
FAILED, DIVERGED, PID = "failed", "diverged", "process"
"""Keys of a result: the reason of a failure, whether every further try would fail too, the trial's process id."""
CHECKPOINT, DAMAGED, NOT_WRITTEN = "checkpoint", "damaged", "not_written"
"""Keys of a result: name of the checkpoint in the trial's folder; damaged checkpoints that a continued trial skipped;
the reason why no checkpoint can be written, which ends the sweep: no later one could be written either."""


def payload(report: Report, checkpoint: str = "", damaged: Sequence[str] = ()) -> dict[str, Any]:
    """A report in the form that Tune and Train carry, with the values of `CHECKPOINT` and `DAMAGED`.

    They keep results as JSON, so the picture is text. Values are in a list, because Tune flattens dictionaries.
    """
    measured = report.best.validation if report.best else report.validation
    return {
        **report.metrics,
        **({BEST: [report.best.step, measured.means]} if report.best else {}),
        "step": report.step,
        LOSSES: [[step, dict(row)] for step, row in report.losses],
        VALIDATION: _packed(measured),
        TEST: _packed(report.test) if report.test else [],
        REPEATED: report.repeated,
        CHECKPOINT: checkpoint,
        DAMAGED: list(damaged),
        PID: os.getpid(),
    }


def kept_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the validation metrics of the step that its trial keeps so far: this one, or the best."""
    _, means = result.get(BEST, (0, {}))
    return {**result, **means}


def _packed(validation: Validation) -> list[Any]:
    per_image = {name: values.tolist() for name, values in validation.per_image.items()}
    return [list(validation.images), per_image, base64.b64encode(validation.grid).decode()]


def take_validation(result: dict[str, Any]) -> tuple[Validation, Validation | None]:
    """Removes the values of every validation image and every test image from a result, so that Tune does not keep them
    with the trial's state. There are test images in the last result of a trial of the confirmation only.
    """
    test = result.pop(TEST, None)
    return _unpacked(result.pop(VALIDATION)), _unpacked(test) if test else None


def _unpacked(packed: list[Any]) -> Validation:
    images, per_image, picture = packed
    values = {name: np.asarray(of_images) for name, of_images in per_image.items()}
    return Validation(values, images, base64.b64decode(picture))
