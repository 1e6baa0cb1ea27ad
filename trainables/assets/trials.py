"""Finished trials that ship with the project, for questions that train nothing: `make assets ARGS=finished`.

On the photographs to build with, printed and photographed again (preset `sample-print`), through the same loop as every
trial, only longer. A finished trial is a folder with its averaged weights, in half precision here, and its settings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainables.assets.work import WorkFolder
from trainables.data.prepare import prepare
from trainables.methods.build import method_class
from trainables.pretrained.finished_trial import WEIGHTS
from trainables.pretrained.weights_file import describe, save_weights
from trainables.settings import SAMPLE, SHIPPED, TrialSettings, override
from trainables.settings.presets import preset
from trainables.training.checkpoint import SETTINGS
from trainables.training.loop import World, train
from trainables.training.reporting import Report

PRESET = "sample-print"
METRICS = ("val/psnr", "val/psnr_y", "val/ssim", "val/st_lpips")

_OF_DECODERS: dict[str, Any] = {
    "pairs.train_pairs": 1024,
    "training.max_steps": 1000,
    "training.beta1": 0.9,
    "training.beta2": 0.999,
    "training.ema_decay": 0.99,
    "training.reports": 12,
    "training.log_every": 50,
}
# In this order: the decoders are trained on what the first one restores.
RECIPES: dict[str, dict[str, Any]] = {
    "latent_diffusion": {
        "perceptual.weight": 0.1,
        "perceptual.every": 4,
        "training.learning_rate": 3e-3,
        "pairs.train_pairs": 2048,
        "training.max_steps": 3000,
        "training.batch_size": 8,
        "training.warmup_steps": 100,
        "training.ema_decay": 0.995,
        "training.reports": 12,
        "training.log_every": 50,
    },
    "stablesr_cfw": _OF_DECODERS,
    "ccsr": _OF_DECODERS,
    "one_step": {
        "one_step.dual": True,
        "one_step.timestep": 1,
        "one_step.pixel_steps": 400,
        "pairs.train_pairs": 1024,
        "training.max_steps": 900,
        "training.schedule": "constant",
        "training.reports": 9,
        "training.log_every": 50,
    },
}


def trial_settings(method: str, work: WorkFolder, photographs: Path) -> TrialSettings:
    """The settings of a method in the preset `sample-print` with its recipe, on the networks in the work folder.

    Args:
        photographs: folder of the photographs to train on.
    """
    chosen = preset(PRESET)
    changes = {
        "method": method,
        **chosen.methods[method],
        **RECIPES[method],
        "data.source": str(photographs),
        "pairs.colour_swap_prob": 0.1,
        "base.weights": str(work.base),
    }
    if method != "latent_diffusion":
        changes["first_stage.weights"] = str(work.finished("latent_diffusion"))
    return override(chosen.trial, changes)


def train_finished(method: str, work: WorkFolder, photographs: Path, log: Callable[[str], None] = print) -> None:
    """Trains a finished trial, or continues from its last report, and leaves it in the work folder."""
    settings = trial_settings(method, work, photographs)
    checkpoint, store = work.root / f"{method}.checkpoint", work.root / "prepared"

    def keep(report: Report, write: Callable[[Path], None]) -> None:
        values = {name: round(value, 4) for name, value in report.metrics.items() if name.startswith("val/")}
        log(f"{method} {report.step}/{settings.training.max_steps}, pairs of the build's own photographs: {values}")
        partial = checkpoint.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(partial)
        shutil.rmtree(checkpoint, ignore_errors=True)
        partial.replace(checkpoint)

    prepared = prepare(settings, store, method_class(method).columns(settings))
    train(settings, prepared, METRICS, World(), keep, checkpoint if checkpoint.is_dir() else None)
    _finish(checkpoint, work.finished(method))


def _finish(checkpoint: Path, folder: Path) -> None:
    """Half-precision weights, and settings without this machine's paths: the shipped networks by their name."""
    folder.mkdir(exist_ok=True)
    kind, architecture = describe(checkpoint / WEIGHTS)
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    save_weights(folder / WEIGHTS, weights, kind, architecture)
    settings = json.loads((checkpoint / SETTINGS).read_text(encoding="utf-8"))
    settings["data.source"] = SAMPLE
    for name in ("base.weights", "first_stage.weights"):
        settings[name] = SHIPPED
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
