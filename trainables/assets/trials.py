"""Trains the finished trials that ship with the project, for evaluation-only spaces: `make assets ARGS=finished`.

They train on the sample's training photographs in the same loop as every trial, with more steps. A finished trial is a
folder with its averaged weights, here in half precision, and its settings.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainables.data.prepare import prepare
from trainables.methods.build import method_class
from trainables.pretrained.finished_trial import WEIGHTS
from trainables.pretrained.shipped import ASSETS
from trainables.pretrained.weights_file import describe, save_weights
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset
from trainables.training.checkpoint import SETTINGS
from trainables.training.loop import World, train
from trainables.training.reporting import Report

SAMPLE_METRICS = ("val/psnr", "val/psnr_y", "val/ssim", "val/st_lpips")

# Trained in this order: the decoders train on the first trial's restored latents.
RECIPES: dict[str, dict[str, Any]] = {
    "latent_diffusion": {
        "pairs.train_pairs": 2048,
        "training.max_steps": 3000,
        "training.batch_size": 8,
        "training.warmup_steps": 100,
        "training.ema_decay": 0.995,
        "training.reports": 4,
        "training.log_every": 50,
    },
    "stablesr_cfw": {
        "pairs.train_pairs": 1024,
        "training.max_steps": 1000,
        "training.beta1": 0.9,
        "training.beta2": 0.999,
        "training.ema_decay": 0.99,
        "training.reports": 4,
        "training.log_every": 50,
    },
    "ccsr": {
        "pairs.train_pairs": 1024,
        "training.max_steps": 1000,
        "training.beta1": 0.9,
        "training.beta2": 0.999,
        "training.ema_decay": 0.99,
        "training.reports": 4,
        "training.log_every": 50,
    },
}


def recipe(method: str) -> TrialSettings:
    """The sample preset's settings of a method, changed by its recipe."""
    chosen = preset("sample")
    return override(chosen.trial, {"method": method, **chosen.methods[method], **RECIPES[method]})


def train_finished(method: str) -> Mapping[str, Any]:
    """Trains and saves the finished trial of a method; returns its recipe, time and metrics for `build.json`."""
    settings, started, reached = recipe(method), time.monotonic(), dict[str, float]()
    folder = ASSETS / f"{method}_sample"

    def keep(report: Report, write: Callable[[Path], None]) -> None:
        """Every report overwrites the shipped files."""
        reached.update({name: value for name, value in report.metrics.items() if name.startswith("val/")})
        print(f"{method}, step {report.step}: {reached}", flush=True)
        with tempfile.TemporaryDirectory() as written:
            write(Path(written))
            _ship(Path(written), folder)

    with tempfile.TemporaryDirectory() as store:
        prepared = prepare(settings, Path(store), method_class(method).columns(settings))
        train(settings, prepared, SAMPLE_METRICS, World(), keep)
    return {
        "recipe": RECIPES[method],
        "minutes": round((time.monotonic() - started) / 60, 1),
        "reached": reached,
    }


def _ship(written: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    kind, architecture = describe(written / WEIGHTS)
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(written / WEIGHTS).items()}
    save_weights(folder / WEIGHTS, weights, kind, architecture)
    (folder / SETTINGS).write_text(json.dumps(json.loads((written / SETTINGS).read_text()), indent=1) + "\n")
