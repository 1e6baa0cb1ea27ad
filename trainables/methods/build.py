"""From settings to a method that is ready to train or to restore."""

from __future__ import annotations

from pathlib import Path

import torch

from trainables.methods.method import Method
from trainables.pretrained.shipped import shipped_checkpoint
from trainables.pretrained.weights_file import reading
from trainables.settings import SHIPPED, TrialSettings
from trainables.settings.methods import method_class
from trainables.training.checkpoint import load_finished


def build_method(settings: TrialSettings, device: torch.device) -> Method:
    """The trial's method, with the weights of `settings.checkpoint` if there is one.

    Raises:
        InputError: weights that cannot be had or do not fit.
    """
    method = method_class(settings.method)(settings, device)
    if settings.checkpoint:
        shipped = settings.checkpoint == SHIPPED
        path = shipped_checkpoint(settings.method) if shipped else Path(settings.checkpoint).expanduser()
        if path.is_file():
            with reading("checkpoint", path, "the folder of a finished trial, nor a public checkpoint of this network"):
                if path.suffix == ".safetensors":  # ours, which would be read without the description that it has
                    raise ValueError("expected a .pth or .ckpt file, or the folder that the weights are in")
                method.load_public(path)
        else:
            load_finished(method, path)
    return method
