"""Finding, loading and saving the weights a trial starts from and the ones it leaves behind.

Ours are safetensors with a description in their metadata: what kind of network, of which shape. Public checkpoints
load through their converters, strictly. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.common.errors import InputError, in_one_line
from trainables.diffusion.resshift import ResShiftDiffusion
from trainables.networks.autoencoder import load_vq_f4
from trainables.networks.swin_unet import SwinUNet
from trainables.pretrained.base_model import SHARDS, WEIGHTS
from trainables.pretrained.finished_trial import ASSETS, SETTINGS
from trainables.settings import SHIPPED, NetworkSettings, ResShiftSettings, TrialSettings, flatten

SHIPPED_AUTOENCODER = ASSETS / "vq_f4_sample.safetensors"
SHIPPED_TEACHER = ASSETS / "resshift_sample.safetensors"
SHIPPED_FIRST_STAGE = ASSETS / "latent_diffusion_sample"


def autoencoder_path(weights: str) -> Path:
    return _existing("autoencoder.weights", weights, SHIPPED_AUTOENCODER)


def teacher_path(weights: str) -> Path:
    return _existing("teacher.weights", weights, SHIPPED_TEACHER)


def first_stage_path(weights: str) -> Path:
    """The folder of the finished `latent_diffusion` that decoders are trained on."""
    return _existing("first_stage.weights", weights, SHIPPED_FIRST_STAGE)


def shipped_checkpoint(method: str) -> Path:
    """The finished trial of a method that ships with the project.

    Raises:
        InputError: there is none.
    """
    path = ASSETS / f"{method}_sample"
    if not path.is_dir():
        raise InputError(f"checkpoint={SHIPPED}: none ships for the method {method}; give --checkpoint FOLDER")
    return path


def _existing(name: str, weights: str, shipped: Path) -> Path:
    path = shipped if weights == SHIPPED else Path(weights).expanduser()
    if not path.exists():
        raise InputError(f"{name}={weights}: no such file; expected {SHIPPED!r} or a path, see docs/weights.md")
    return path


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of what is read of a folder in diffusers layout or of a finished trial. Whatever else lies
    there, such as the same weights in other formats, makes no difference."""
    digest = hashlib.sha256()
    for file in _files_read(path) if path.is_dir() else [path]:
        status = file.stat()
        digest.update(_hash_file(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _files_read(folder: Path) -> list[Path]:
    names = {"config.json", "scheduler_config.json", SETTINGS, "weights.safetensors"}
    index = folder / SHARDS
    # Where there is an index, diffusers reads its shards, and no single file that lies beside them.
    names |= {SHARDS, *json.loads(index.read_text())["weight_map"].values()} if index.is_file() else {WEIGHTS}
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


@functools.lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, changed: int) -> bytes:
    """Once for each state of a file: a base has gigabytes, and every checkpoint names it."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def build_network(settings: NetworkSettings, gradient_checkpointing: bool = False) -> SwinUNet:
    """A Swin-UNet with fresh weights, for 3-channel latents conditioned on a 3-channel image of their size.

    Raises:
        InputError: a layout that cannot be built.
    """
    try:
        return SwinUNet(
            **dataclasses.asdict(settings), in_channels=6, out_channels=3, gradient_checkpointing=gradient_checkpointing
        )
    except ValueError as error:
        raise InputError(f"network: {error}") from None


def count_parameters(settings: NetworkSettings) -> int:
    """Parameters of a network, without making it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(settings).parameters())


def build_diffusion(settings: ResShiftSettings) -> ResShiftDiffusion:
    return ResShiftDiffusion(**dataclasses.asdict(settings))


def load_autoencoder(weights: str, device: torch.device | str = "cpu") -> VQModel:
    """The frozen autoencoder, in evaluation mode."""
    path = autoencoder_path(weights)
    with reading("autoencoder.weights", path, "a VQ-f4 autoencoder"):
        model = load_vq_f4(path)
    return model.to(device).eval().requires_grad_(False)


def resshift_identity(settings: TrialSettings) -> dict[str, Any]:
    """What the weights of ResShift and SinSR belong to: a shape of network, the schedule whose states it has learnt to
    restore, and an autoencoder, by its content."""
    return {
        **flatten(settings.network, "network."),
        **flatten(settings.resshift, "resshift."),
        "autoencoder": fingerprint(autoencoder_path(settings.autoencoder.weights)),
    }


def load_teacher(settings: TrialSettings, device: torch.device | str = "cpu") -> SwinUNet:
    """The trial's frozen ResShift teacher, in evaluation mode.

    Raises:
        InputError: see `load_teacher_weights`.
    """
    network = build_network(settings.network)
    load_teacher_weights(network, settings)
    return network.to(device).eval().requires_grad_(False)


def load_official_swin_unet(network: SwinUNet, path: Path) -> None:
    """Loads a .pth of ResShift or SinSR, which says nothing of its schedule and autoencoder, into `network`."""
    network.load_official_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def load_teacher_weights(network: SwinUNet, settings: TrialSettings) -> None:
    """Loads `teacher.weights`, our safetensors or an official .pth, into `network`.

    Raises:
        InputError: no such file, a checkpoint of another method, or weights of another shape, schedule or autoencoder
            than the trial's; an official .pth names only its shapes.
    """
    path, name = teacher_path(settings.teacher.weights), "teacher.weights"
    with reading(name, path, "a checkpoint of this network"):
        if path.suffix == ".safetensors":
            kind, identity = describe(path)
            if kind != "resshift":
                raise InputError(f"{name}={path}: weights of {kind!r}; expected those of 'resshift'")
            if difference := unequal(identity, resshift_identity(settings)):
                raise InputError(f"{name}={path}: {difference}")
            network.load_state_dict(load_file(path))
        else:
            load_official_swin_unet(network, path)


@contextmanager
def reading(setting: str, path: Path, what: str) -> Iterator[None]:
    """Within it, what a file that is not `what` makes its readers raise becomes an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of torch, safetensors, zip archives, and of looking for names that are not there
        raise InputError(f"{setting}={path}: not {what}: {in_one_line(error)}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        ValueError: there is none that can be read.
    """
    try:
        return load_file(path)
    except Exception as error:  # whatever a file that is none makes the reader raise
        raise ValueError(f"not a readable .safetensors file: {in_one_line(error)}") from None


def describe(path: Path) -> tuple[str, dict[str, Any]]:
    """(kind, architecture) of one of our safetensors; ("unknown", {}) of somebody else's."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    architecture = json.loads(metadata.get("network", "{}"))
    return metadata.get("kind", "unknown"), architecture if isinstance(architecture, dict) else {}


def save_weights(
    path: Path, state: Mapping[str, Tensor], kind: str, architecture: Mapping[str, Any], **more: str
) -> None:
    """Safetensors with the description that `describe` reads back."""
    metadata = {"format": "pt", "kind": kind, "network": json.dumps(architecture), **more}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path, metadata)


def unequal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What two architectures differ in, in words; empty if in nothing."""
    expected = json.loads(json.dumps(expected))
    parts = [
        f"{name} is {_short(found.get(name))} there and {_short(expected.get(name))} in the settings"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    return f"trained otherwise: {'; '.join(parts)}" if parts else ""


def _short(value: Any) -> Any:
    """A hash by its first digits."""
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else value
