"""The shipped weights, and the paths of the weights named in the settings. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from trainables.common.errors import InputError
from trainables.pretrained.fetched import weights_at
from trainables.pretrained.finished_trial import WEIGHTS
from trainables.settings import SHIPPED

ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of the shipped weights; `<method>_sample` are finished trials."""

SHIPPED_AUTOENCODER = ASSETS / "vq_f4_sample.safetensors"
SHIPPED_TEACHER = ASSETS / "resshift_sample.safetensors"
SHIPPED_FIRST_STAGE = ASSETS / "latent_diffusion_sample"


def autoencoder_path(weights: str) -> Path:
    return _existing("autoencoder.weights", weights, SHIPPED_AUTOENCODER)


def teacher_path(weights: str) -> Path:
    """The file of the ResShift teacher; of a finished trial its weights."""
    path = _existing("teacher.weights", weights, SHIPPED_TEACHER)
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def first_stage_path(weights: str) -> Path:
    """The folder of the finished `latent_diffusion` whose latents train the decoders."""
    return _existing("first_stage.weights", weights, SHIPPED_FIRST_STAGE)


def shipped_checkpoint(method: str) -> Path:
    """The shipped finished trial of a method.

    Raises:
        InputError: there is none.
    """
    path = ASSETS / f"{method}_sample"
    if not path.is_dir():
        raise InputError(f"checkpoint={SHIPPED}: no checkpoint of {method} is shipped; give --checkpoint FOLDER")
    return path


def _existing(name: str, weights: str, shipped: Path) -> Path:
    path = shipped if weights == SHIPPED else weights_at(name, weights)
    if not path.exists():
        raise InputError(f"{name}={weights}: no such file; expected {SHIPPED!r} or a path, see docs/weights.md")
    return path
