"""Trains the weights that ship with the project: `make assets`, or `python -m trainables.assets`.

Training uses only the sample's training photographs, one thread and one seed: the same machine makes the same files.
The parts are, in this order: the VQ-f4 autoencoder; the ResShift teacher in its latents, in the same loop as every
trial; the base's autoencoder, which starts from the VQ-f4; the noise predictor in its latents; the finished trials.
Results are written to `build.json` in this folder; `MODEL_CARD.md` quotes them.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import ModelMixin
from safetensors.torch import save_file
from torch import Tensor

from trainables.assets.autoencoder import AutoencoderRecipe, random_crops, train_autoencoder
from trainables.assets.stable_diffusion import (
    BaseAutoencoderRecipe,
    BaseUNetRecipe,
    base_scheduler,
    draw_empty_prompt,
    encode_crops,
    noise_errors,
    train_base_autoencoder,
    train_base_unet,
)
from trainables.assets.trials import RECIPES, SAMPLE_METRICS, train_finished
from trainables.data.prepare import prepare
from trainables.images.sources.photographs import load_photographs
from trainables.images.tensors import to_tensor
from trainables.methods.resshift import ResShift
from trainables.metrics import MetricSet
from trainables.networks.autoencoder import load_vq_f4, save_vq_f4
from trainables.pretrained.base_model import SHIPPED_BASE, load_empty_prompt, load_unet, load_vae
from trainables.pretrained.shipped import SHIPPED_AUTOENCODER, SHIPPED_TEACHER
from trainables.settings import SAMPLE, TrialSettings, override
from trainables.settings.presets import preset
from trainables.training.controls import measure_controls
from trainables.training.loop import World, train
from trainables.training.reporting import Report

RECORD = Path(__file__).parent / "build.json"
NOISE_MEASURED_AT = (50, 200, 500, 800, 999)
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
    """The sample preset with the teacher's recipe."""
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
        train(settings, prepared, SAMPLE_METRICS, World(), _keep)
    _note("teacher", {"recipe": TEACHER_CHANGES, "minutes": _minutes(started)})


def build_base_autoencoder() -> None:
    """Trains and saves the base's autoencoder; needs the VQ-f4."""
    recipe = BaseAutoencoderRecipe()
    started = time.monotonic()
    photographs = [photograph.pixels for photograph in load_photographs(SAMPLE, "train")]
    _save_half(train_base_autoencoder(photographs, load_vq_f4(SHIPPED_AUTOENCODER), recipe), SHIPPED_BASE / "vae")
    _note("base_autoencoder", {"recipe": asdict(recipe), "minutes": _minutes(started)})


def build_base_unet() -> None:
    """Trains and saves the base's noise predictor, scheduler and empty prompt; needs the base's autoencoder."""
    recipe = BaseUNetRecipe()
    started = time.monotonic()
    photographs = [photograph.pixels for photograph in load_photographs(SAMPLE, "train")]
    empty_prompt = draw_empty_prompt()
    unet = train_base_unet(photographs, load_vae(SHIPPED_BASE), empty_prompt, recipe)
    _save_half(unet, SHIPPED_BASE / "unet")
    scheduler = base_scheduler()
    scheduler.save_pretrained(SHIPPED_BASE / "scheduler")
    save_file({"empty_prompt": empty_prompt}, SHIPPED_BASE / "empty_prompt.safetensors")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (SHIPPED_BASE / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    _note("base_unet", {"recipe": asdict(recipe), "minutes": _minutes(started)})


def build_finished() -> None:
    """Trains and saves the finished trials; needs the base."""
    for method in RECIPES:
        _note(f"{method}_sample", train_finished(method))


def measure() -> None:
    """Measures the shipped weights on the sample's validation pairs and writes the metrics to `build.json`."""
    settings = preset("sample").trial
    names = ("bicubic", "autoencoder", "teacher_1", f"teacher_{settings.resshift.steps}")
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(settings, Path(folder), ResShift.columns(settings))
        reached = measure_controls(names, settings, prepared, SAMPLE_METRICS)
        targets = prepared.validation("target").rows("target", np.arange(prepared.validation_rows))
    for name, validation in reached.items():
        print(name, {metric: round(value, 4) for metric, value in validation.means.items()}, flush=True)
    _note("reached", {name: validation.means for name, validation in reached.items()})
    _measure_base(to_tensor(targets, torch.device("cpu")))


def _keep(report: Report, write: Callable[[Path], None]) -> None:
    """Every report overwrites the shipped weights."""
    shown = {name: round(value, 4) for name, value in report.metrics.items()}
    print(f"step {report.step}: {shown}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        SHIPPED_TEACHER.write_bytes((Path(folder) / "weights.safetensors").read_bytes())


@torch.no_grad()
def _measure_base(held_out: Tensor) -> None:
    """Measures the base on validation targets (N, 3, 64, 64) in [-1, 1]; its noise predictor also on training crops."""
    photographs = [photograph.pixels for photograph in load_photographs(SAMPLE, "train")]
    crops = {
        "held_out": held_out,
        "training": random_crops(photographs, len(held_out), held_out.shape[-1], np.random.default_rng(1)),
    }
    vae, unet, empty_prompt = load_vae(SHIPPED_BASE), load_unet(SHIPPED_BASE), load_empty_prompt(SHIPPED_BASE)
    latents = {name: encode_crops(vae, images) for name, images in crops.items()}
    restored = vae.decode(latents["held_out"]).sample
    metrics = MetricSet(SAMPLE_METRICS)(restored * 0.5 + 0.5, held_out * 0.5 + 0.5)
    facts: dict[str, object] = {
        "autoencoder": {name: values.mean().item() for name, values in metrics.items()},
        "noise_mse": {
            name: {
                t: noise_errors(unet, base_scheduler(), z * vae.config.scaling_factor, empty_prompt, t)
                for t in NOISE_MEASURED_AT
            }
            for name, z in latents.items()
        },
    }
    print(json.dumps(facts, indent=1), flush=True)
    _note("base_reached", facts)


def _save_half(model: ModelMixin, folder: Path) -> None:
    """Saves in the layout of diffusers, in half precision to halve the size. Load it in float32."""
    copy.deepcopy(model).half().save_pretrained(folder)


def _note(part: str, facts: Mapping[str, object]) -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[part] = dict(facts)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def _minutes(started: float) -> float:
    return round((time.monotonic() - started) / 60, 1)


PARTS: dict[str, Callable[[], None]] = {
    "autoencoder": build_autoencoder,
    "teacher": build_teacher,
    "base-autoencoder": build_base_autoencoder,
    "base-unet": build_base_unet,
    "finished": build_finished,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=("all", *PARTS, "measure"), default="all")
    part = parser.parse_args().part
    torch.set_num_threads(1)
    for name, build in PARTS.items():
        if part in ("all", name):
            build()
    measure()


if __name__ == "__main__":
    main()
