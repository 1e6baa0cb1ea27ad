"""Reading and writing files of weights.

Our files are safetensors whose metadata names the kind and the shape of the network. Public checkpoints are loaded
strictly, through converters. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.common.errors import InputError, one_line


@contextmanager
def reading(setting: str, path: Path, what: str) -> Iterator[None]:
    """Turns any error of reading a wrong file into an InputError of one line: the file is not `what`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # from torch, safetensors, zip archives, or missing names
        raise InputError(f"{setting}={path}: not {what}: {one_line(error)}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        ValueError: not a readable file.
    """
    try:
        return load_file(path)
    except Exception as error:  # the reader raises many types for a wrong file
        raise ValueError(f"not a readable .safetensors file: {one_line(error)}") from None


def describe(path: Path) -> tuple[str, dict[str, Any]]:
    """(kind, architecture) of one of our safetensors; ("unknown", {}) for any other."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    architecture = json.loads(metadata.get("network", "{}"))
    return metadata.get("kind", "unknown"), architecture if isinstance(architecture, dict) else {}


def save_weights(
    path: Path, state: Mapping[str, Tensor], kind: str, architecture: Mapping[str, Any], **more: str
) -> None:
    """Writes safetensors with the description that `describe` reads."""
    metadata = {"format": "pt", "kind": kind, "network": json.dumps(architecture), **more}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path, metadata)
