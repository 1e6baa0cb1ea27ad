"""A trial's checkpoint: everything needed to continue exactly, and files for people to look at.

state.pt            weights, averages, optimisers, scalers, step, report: plain tensors, numbers and names. A checkpoint
                    before the first report has none, and none of the files to look at
weights.safetensors the averaged weights, with their description; `teacher.weights` accepts it (resshift). With
                    `training.keep=best` these and the files below are those of the best step so far
settings.json       the trial's settings, by dotted name
per_image.parquet   validation metrics of every image at this step, to look at
grid.png            input | output | target of a few images, to look at
validation.png      these of more images, for the report; test.png, of the test images, after the last step
checksums.json      SHA-256 of the files above, see `checkpoint_folders.py`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from trainables.common.errors import InputError
from trainables.methods.build import weights_prefix
from trainables.methods.method import Method
from trainables.networks.plain_files import load_plain
from trainables.pretrained.finished_trial import SETTINGS, STATE, WEIGHTS
from trainables.pretrained.weights_file import save_weights
from trainables.settings import TrialSettings, flatten
from trainables.training.ema import ExponentialMovingAverage
from trainables.training.measurements import Validation, encode_png
from trainables.training.pictures import PICTURES
from trainables.training.reporting import Report


def write_checkpoint(
    folder: Path, report: Report, method: Method, ema: ExponentialMovingAverage, optimisation: dict[str, Any]
) -> None:
    """Writes all files of a checkpoint into an existing folder.

    They take about 16 bytes per trained parameter, and 4 more for the weights alone; pictures take about 20 MB
    a split if images are many or large, on the sample 0.8 MB. Frozen weights are not written.
    """
    settings, best = method.settings, report.best
    validation, step = (best.validation, best.step) if best else (report.validation, report.step)
    state = {
        "method": settings.method,
        "step": report.step if report.reached is None else report.reached,
        "networks": method.trained_state(),
        "ema": ema.state_dict(),
        "optimisation": optimisation,
        "best": best.state if best else None,
        "report": {
            "step": report.step,
            "metrics": dict(report.metrics),
            "losses": [[step, dict(terms)] for step, terms in report.losses],
            **_kept(report.validation),
            "test": _kept(report.test) if report.test else None,
        }
        if report.metrics
        else None,
    }
    torch.save(state, folder / STATE)
    with best.applied(method) if best else ema.applied():
        weights = {name.removeprefix(weights_prefix(method)): tensor for name, tensor in method.result().items()}
        save_weights(folder / WEIGHTS, weights, settings.method, method.architecture(settings), step=str(step))
    (folder / SETTINGS).write_text(json.dumps(flatten(settings), indent=1), encoding="utf-8")
    if report.metrics:
        validation.write(folder, step)
    for split, measured in {"validation": validation, "test": report.test}.items():
        if measured is not None and measured.pictures is not None:
            measured.pictures.write(folder / PICTURES[split])


def report_of(folder: Path, state: dict[str, Any]) -> Report:
    """The report of a checkpoint, to be sent again.

    A checkpoint of version 0.1 has only the values of every image and the picture, in the files next to its state. Then
    the report lacks losses, times and the number of trained parameters.
    """
    kept = state.get("report")
    if kept is None:
        validation = Validation.read(folder)
        return Report(state["step"], validation.means, [], validation, repeated=True)
    test = _measured(kept["test"]) if kept.get("test") else None
    losses = [(step, terms) for step, terms in kept.get("losses", [])]
    step = kept.get("step", state["step"])
    return Report(step, kept["metrics"], losses, _measured(kept), repeated=True, test=test)


def _kept(validation: Validation) -> dict[str, Any]:
    return {
        "images": list(validation.images),
        "per_image": {name: torch.from_numpy(values) for name, values in validation.per_image.items()},
        "grid": torch.frombuffer(bytearray(validation.grid), dtype=torch.uint8),
    }


def _measured(kept: dict[str, Any]) -> Validation:
    per_image = {name: values.numpy() for name, values in kept["per_image"].items()}
    grid = kept["grid"].numpy()  # (H, W, 3) in earlier checkpoints
    return Validation(per_image, kept["images"], grid.tobytes() if grid.ndim == 1 else encode_png(grid))


def read_state(folder: Path, settings: TrialSettings) -> dict[str, Any]:
    """The state of a checkpoint of the same method.

    Raises:
        InputError: not a checkpoint, or one of another method.
    """
    try:
        state: dict[str, Any] = load_plain(folder / STATE)
        method = state["method"]
    except Exception as error:
        raise InputError(f"{folder}: not a checkpoint of a trial ({type(error).__name__})") from None
    if method != settings.method:
        raise InputError(f"{folder}: a checkpoint of method {method!r}; expected one of {settings.method!r}")
    return state
