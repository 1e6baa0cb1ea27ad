"""Reads files of `torch.save` from somebody else: nothing in them is run, and a small file does not fill the memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.common.archives import refuse_packed

_LARGEST_FACTOR, _LEAST_BYTES = 30.0, 64e6
"""A file's tensors may take so many times its size and so many bytes more; a view may repeat what is stored once."""


def load_plain(path: Path) -> Any:
    """The tensors, numbers and names in a file, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it expands in memory.
        Exception: of the reader or the file system: damaged, or more than tensors, numbers and names.
    """
    refuse_packed(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    _refuse_expanded(content, _LARGEST_FACTOR * path.stat().st_size + _LEAST_BYTES)
    return content


def _refuse_expanded(content: Any, most: float) -> None:
    """Raises ValueError if all tensors together take more than `most` bytes once they are copied."""
    taken, waiting, seen = 0.0, [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise ValueError("it holds a sparse tensor; expected dense ones")
            taken += value.numel() * value.element_size()
            if taken > most:
                raise ValueError(f"its tensors take more than {most / 1e6:,.0f} MB of memory")
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)
