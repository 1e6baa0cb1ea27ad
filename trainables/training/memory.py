"""Frees what a trial leaves in a process which will run the next trial."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Frees memory and compiled graphs. After eight graphs of one function PyTorch would compile no more, without a
    word.
    """
    torch.compiler.reset()
    torch.clear_autocast_cache()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
