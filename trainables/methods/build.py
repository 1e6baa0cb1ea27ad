"""Builds a method from settings, ready to train or to restore."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainables.common.errors import InputError
from trainables.methods.method import Method
from trainables.methods.shared.precision import hold_frozen_base
from trainables.pretrained.fetched import weights_at
from trainables.pretrained.finished_trial import CHECKSUMS, WEIGHTS, has_changed
from trainables.pretrained.identity import unequal
from trainables.pretrained.shipped import shipped_checkpoint
from trainables.pretrained.weights_file import describe, reading
from trainables.settings import SHIPPED, TrialSettings
from trainables.settings.methods import METHODS


def build_method(settings: TrialSettings, device: torch.device) -> Method:
    """The trial's method, with the weights of `settings.checkpoint` if it is set.

    Raises:
        InputError: weights are missing, cannot be loaded or do not fit.
    """
    method = method_class(settings.method)(settings, device)
    if settings.checkpoint:
        shipped = settings.checkpoint == SHIPPED
        path = shipped_checkpoint(settings.method) if shipped else weights_at("checkpoint", settings.checkpoint)
        if path.is_file():
            with reading("checkpoint", path, "the folder of a finished trial, nor a public checkpoint of this network"):
                if path.suffix == ".safetensors":  # our format; `load_public` would ignore its description
                    raise ValueError("expected a .pth or .ckpt file, or the folder that the weights are in")
                method.load_public(path)
        else:
            load_finished(method, path)
    hold_frozen_base(method.parts, settings.training.precision)
    return method


def load_finished(method: Method, folder: Path) -> None:
    """Loads the averaged weights of a finished trial into `method`.

    Raises:
        InputError: not such a folder, or one of another method or architecture.
    """
    path, settings = folder / WEIGHTS, method.settings
    if not path.is_file():
        raise InputError(
            f"checkpoint={folder}: has no {WEIGHTS}; expected a finished trial, such as a run's best/, or the file of "
            "a public checkpoint, see docs/weights.md"
        )
    try:
        if has_changed(folder, WEIGHTS):
            raise InputError(
                f"checkpoint={path}: its content has changed since it was written; put back a copy, or delete "
                f"{CHECKSUMS} if you changed it yourself"
            )
        kind, architecture = describe(path)
        state = load_file(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"checkpoint={path}: not readable ({type(error).__name__})") from None
    if kind != settings.method:
        raise InputError(f"checkpoint={path}: weights of {kind!r}; expected those of {settings.method!r}")
    if difference := unequal(architecture, method.architecture(settings)):
        raise InputError(f"checkpoint={path}: {difference}")
    try:
        method.load({f"{weights_prefix(method)}{name}": tensor for name, tensor in state.items()}, method.result())
    except ValueError as error:
        raise InputError(f"checkpoint={path}: {error}") from None


def weights_prefix(method: Method) -> str:
    """A single network is saved under its own weight names, which other programs know."""
    restoring = [name for name in method.networks if name not in method.adversaries]
    return f"{restoring[0]}." if len(restoring) == 1 else ""


def method_class(name: str) -> type[Method]:
    """The class of a registered method."""
    module, _, attribute = METHODS[name].path.partition(":")
    found: type[Method] = getattr(importlib.import_module(module), attribute)
    return found
