"""A trial's checkpoint: everything needed to continue exactly, and files for people to look at.

state.pt            weights, averages, optimisers, scalers, step (plain tensors and numbers)
weights.safetensors the averaged weights, with their description; `teacher.weights` accepts it (resshift)
settings.json       the trial's settings, by dotted name
per_image.parquet   validation metrics of every image at this step
grid.png            input | output | target
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from trainables.common.errors import InputError
from trainables.methods.build import _prefix
from trainables.methods.method import Method
from trainables.pretrained.finished_trial import SETTINGS, STATE, WEIGHTS
from trainables.pretrained.weights_file import save_weights
from trainables.settings import TrialSettings, flatten
from trainables.training.ema import ExponentialMovingAverage
from trainables.training.validation import GRID, PER_IMAGE, Validation


def write_checkpoint(
    folder: Path,
    step: int,
    method: Method,
    ema: ExponentialMovingAverage,
    optimisation: dict[str, Any],
    validation: Validation,
) -> None:
    """Writes all files of a checkpoint into an existing folder.

    They take about 16 bytes per trained parameter, and 4 more for the weights alone; the rest is under a megabyte.
    Frozen weights are not written.
    """
    state = {
        "method": method.settings.method,
        "step": step,
        "networks": method.trained_state(),
        "ema": ema.state_dict(),
        "optimisation": optimisation,
    }
    torch.save(state, folder / STATE)
    settings = method.settings
    with ema.applied():
        weights = {name.removeprefix(_prefix(method)): tensor for name, tensor in method.result().items()}
        save_weights(folder / WEIGHTS, weights, settings.method, method.architecture(settings), step=str(step))
    (folder / SETTINGS).write_text(json.dumps(flatten(method.settings), indent=1))
    table = {"step": [step] * len(validation.images), "image": validation.images, **validation.per_image}
    pq.write_table(pa.table(table), folder / PER_IMAGE)
    Image.fromarray(validation.grid).save(folder / GRID)


def read_state(folder: Path, settings: TrialSettings) -> dict[str, Any]:
    """The state of a checkpoint of the same method.

    Raises:
        InputError: not a checkpoint, or one of another method.
    """
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        method = state["method"]
    except Exception as error:
        raise InputError(f"{folder}: not a checkpoint of a trial ({type(error).__name__})") from None
    if method != settings.method:
        raise InputError(f"{folder}: a checkpoint of method {method!r}; expected one of {settings.method!r}")
    return state
