"""ResShift's network and schedule, built from settings, and the weights of its teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainables.common.errors import InputError
from trainables.diffusion.resshift import ResShiftDiffusion
from trainables.networks.checkpoint_files import read_checkpoint
from trainables.networks.swin_unet import SwinUNet
from trainables.pretrained.identity import resshift_identity, unequal
from trainables.pretrained.shipped import teacher_path
from trainables.pretrained.weights_file import describe, reading
from trainables.settings import NetworkSettings, ResShiftSettings, TrialSettings


def build_network(settings: NetworkSettings, gradient_checkpointing: bool = False) -> SwinUNet:
    """A Swin-UNet with random weights, for latents conditioned on a 3-channel image of the same size.

    Raises:
        InputError: a layout that cannot be built.
    """
    try:
        layout = dataclasses.asdict(settings)
        channels = layout.pop("latent_channels")
        return SwinUNet(
            **layout,
            in_channels=channels + 3,
            out_channels=channels,
            gradient_checkpointing=gradient_checkpointing,
        )
    except ValueError as error:
        raise InputError(f"network: {error}") from None


def count_parameters(settings: NetworkSettings) -> int:
    """The number of parameters of a network, without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(settings).parameters())


def build_diffusion(settings: ResShiftSettings) -> ResShiftDiffusion:
    return ResShiftDiffusion(**settings.schedule)


def load_teacher(settings: TrialSettings, device: torch.device | str = "cpu") -> SwinUNet:
    """The trial's frozen ResShift teacher, in evaluation mode.

    Raises:
        InputError: see `load_teacher_weights`.
    """
    network = build_network(settings.network)
    load_teacher_weights(network, settings)
    return network.to(device).eval().requires_grad_(False)


def load_official_swin_unet(network: SwinUNet, path: Path) -> None:
    """Loads a .pth file of ResShift or SinSR into `network`. Such a file names no schedule and no autoencoder."""
    network.load_official_state_dict(read_checkpoint(path))


def load_teacher_weights(network: SwinUNet, settings: TrialSettings) -> None:
    """Loads `teacher.weights`, our safetensors, a finished trial or an official .pth, into `network`.

    Raises:
        InputError: no such file, a checkpoint of another method, or weights of another shape, schedule or autoencoder
            than the trial's. An official .pth is checked by its shapes only.
    """
    path, name = teacher_path(settings.teacher.weights), "teacher.weights"
    with reading(name, path, "a checkpoint of this network"):
        if path.suffix == ".safetensors":
            kind, identity = describe(path)
            if kind != "resshift":
                raise InputError(f"{name}={path}: weights of {kind!r}; expected those of 'resshift'")
            identity.setdefault("network.latent_channels", 3)  # files of version 0.1 do not say it
            if difference := unequal(identity, resshift_identity(settings)):
                raise InputError(f"{name}={path}: {difference}")
            network.load_state_dict(load_file(path))
        else:
            load_official_swin_unet(network, path)
