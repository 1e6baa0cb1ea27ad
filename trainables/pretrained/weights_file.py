"""Reading and writing files of weights.

Ours are safetensors with a description in their metadata: which kind of network, of which shape. Public checkpoints
load through their converters, strictly. Nothing is unpickled.
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
    """Within it, what a file that is not `what` makes its readers raise becomes an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of torch, safetensors, zip archives, and of looking for names that are not there
        raise InputError(f"{setting}={path}: not {what}: {one_line(error)}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        ValueError: there is none that can be read.
    """
    try:
        return load_file(path)
    except Exception as error:  # whatever a file that is none makes the reader raise
        raise ValueError(f"not a readable .safetensors file: {one_line(error)}") from None


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
