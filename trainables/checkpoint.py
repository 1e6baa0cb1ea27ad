"""A trial's checkpoint: everything needed to continue exactly, and what people look at.

state.pt            weights, averages, optimisers, scalers, RNG states, step (plain tensors and numbers)
weights.safetensors the averaged weights, with their description: what `teacher.weights` takes (resshift)
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

from trainables.ema import ExponentialMovingAverage
from trainables.errors import InputError
from trainables.method import Method
from trainables.settings import TrialSettings, flatten
from trainables.validation import Validation
from trainables.weights import save_weights

STATE, WEIGHTS, SETTINGS = "state.pt", "weights.safetensors", "settings.json"
PER_IMAGE, GRID = "per_image.parquet", "grid.png"


def write_checkpoint(
    folder: Path,
    step: int,
    method: Method,
    ema: ExponentialMovingAverage,
    optimisation: dict[str, Any],
    validation: Validation,
) -> None:
    """Writes all files of a checkpoint into an existing folder. Costs about 16 bytes a trained parameter, and 4 more
    for the weights alone; the rest is under a megabyte."""
    state = {
        "method": method.settings.method,
        "step": step,
        "networks": method.networks.state_dict(),
        "ema": ema.state_dict(),
        "optimisation": optimisation,
        "rng": rng_state(),
    }
    torch.save(state, folder / STATE)
    with ema.applied():
        (network,) = method.networks.values() if len(method.networks) == 1 else (method.networks,)
        save_weights(
            folder / WEIGHTS, network.state_dict(), method.settings.method, method.settings.network, step=str(step)
        )
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


def rng_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
