"""Trains the weights that ship with the project: `make assets`, or `python -m trainables.assets.build`.

On the training photographs of the sample alone, one thread, one seed: the same machine makes the same files. First the
autoencoder, then the ResShift teacher in its latents, through the same loop as every trial. What was reached goes to
`build.json` beside the weights; `MODEL_CARD.md` quotes it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from trainables.assets.autoencoder import AutoencoderRecipe, train_autoencoder
from trainables.controls import measure_controls
from trainables.data.photographs import SAMPLE, load_photographs
from trainables.data.prepare import prepare
from trainables.loop import World, train
from trainables.networks.autoencoder import save_vq_f4
from trainables.presets import preset
from trainables.reporting import Report
from trainables.resshift import ResShift
from trainables.settings import TrialSettings, override
from trainables.weights import SHIPPED_AUTOENCODER, SHIPPED_TEACHER

RECORD = Path(__file__).parent / "build.json"
METRICS = ("val/psnr", "val/psnr_y", "val/ssim", "val/st_lpips")
TEACHER_CHANGES = {
    "method": "resshift",
    "pairs.train_pairs": 4096,
    "training.max_steps": 5000,
    "training.batch_size": 16,
    "training.learning_rate": 1e-3,
    "training.warmup_steps": 200,
    "training.schedule": "cosine",
    "training.ema_decay": 0.998,
    "training.clip_gradient": 1.0,
    "training.reports": 5,
    "training.log_every": 50,
}


def teacher_settings() -> TrialSettings:
    """The sample preset with the teacher's own recipe."""
    return override(preset("sample").trial, TEACHER_CHANGES)


def build_autoencoder() -> None:
    """Trains and saves the autoencoder."""
    recipe = AutoencoderRecipe()
    started = time.monotonic()
    photographs = [photograph.pixels for photograph in load_photographs(SAMPLE, "train")]
    save_vq_f4(train_autoencoder(photographs, recipe), SHIPPED_AUTOENCODER)
    _note("autoencoder", {"recipe": asdict(recipe), "minutes": _minutes(started)})


def build_teacher() -> None:
    """Trains and saves the teacher; needs the autoencoder."""
    settings = teacher_settings()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(settings, Path(folder), ResShift.columns(settings))
        train(settings, prepared, METRICS, World(), _keep)
    _note("teacher", {"recipe": TEACHER_CHANGES, "minutes": _minutes(started)})


def measure() -> None:
    """What the shipped weights reach on the sample's validation pairs."""
    settings = preset("sample").trial
    names = ("bicubic", "autoencoder", "teacher_1", f"teacher_{settings.diffusion.steps}")
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(settings, Path(folder), ResShift.columns(settings))
        reached = measure_controls(names, settings, prepared, METRICS)
    for name, validation in reached.items():
        print(name, {metric: round(value, 4) for metric, value in validation.means.items()}, flush=True)
    _note("reached", {name: validation.means for name, validation in reached.items()})


def _keep(report: Report, write: Callable[[Path], None]) -> None:
    """Every report overwrites the shipped weights; the last one stays."""
    shown = {name: round(value, 4) for name, value in report.metrics.items()}
    print(f"step {report.step}: {shown}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        SHIPPED_TEACHER.write_bytes((Path(folder) / "weights.safetensors").read_bytes())


def _note(part: str, facts: dict[str, object]) -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[part] = facts
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def _minutes(started: float) -> float:
    return round((time.monotonic() - started) / 60, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=("all", "autoencoder", "teacher", "measure"), default="all")
    part = parser.parse_args().part
    torch.set_num_threads(1)
    if part in ("all", "autoencoder"):
        build_autoencoder()
    if part in ("all", "teacher"):
        build_teacher()
    measure()


if __name__ == "__main__":
    main()
