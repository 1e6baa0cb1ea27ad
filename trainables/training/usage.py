"""How a trial uses its device: speed, memory, and how busy a GPU is."""

from __future__ import annotations

import math
import resource
import time
from contextlib import suppress
from pathlib import Path

import torch

_EVERY = 1.0  # seconds between two looks at a GPU; its driver averages over less
_PROCESS = Path("/proc/self")


class Usage:
    """What is used between two calls of `take`.

    Memory of a GPU: what PyTorch has allocated. Of a CPU: what the process has in memory, with the pages of prepared
    stores that it has read.

    Args:
        device: the one that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._busy: list[float] = []
        self._asks, self._next = self._cuda is not None, 0.0
        self._begin()

    def _begin(self) -> None:
        self._busy = []
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            # Resets the peak of resident memory. Where it is not allowed, the peak is that since the process started.
            with suppress(OSError):
                (_PROCESS / "clear_refs").write_text("5", encoding="ascii")

    def look(self) -> None:
        """Notes how busy a GPU is, now and then. Call it in every step."""
        if self._asks and time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            try:
                self._busy.append(float(torch.cuda.utilization(self._cuda)))
            except Exception:  # NVIDIA's library or its Python package is missing: many types
                self._asks = False

    def take(self, images: int, seconds: float) -> dict[str, float]:
        """The scalars of a report; starts anew.

        Args:
            images: training images since the last call, of all workers; 0 if nothing trained.
            seconds: that these took, without validations.

        Returns:
            `speed/images_per_second`; `memory/peak_gb` in 1e9 bytes; `gpu/utilisation` in percent, the mean over the
            training steps, if PyTorch can ask for it.
        """
        peak = torch.cuda.max_memory_allocated(self._cuda) if self._cuda else _peak_of_process()
        taken = {"memory/peak_gb": peak / 1e9}
        if images:
            taken["speed/images_per_second"] = images / max(seconds, 1e-9)
        if self._busy:
            taken["gpu/utilisation"] = math.fsum(self._busy) / len(self._busy)
        self._begin()
        return taken


def _peak_of_process() -> float:
    """Bytes."""
    try:
        lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
