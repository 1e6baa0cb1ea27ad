"""Which device a process computes on. Everything that decides between CPU and GPU asks here.

`RESTORATION_SWEEPS_FAKE_GPUS=2` declares two GPUs that do not exist, whatever the machine has: Ray places trials on
them, and CPUs compute in their place. So a sweep takes the branches for GPUs on a machine without one.
"""

from __future__ import annotations

import os

from trainables.common.errors import InputError

FAKE = "RESTORATION_SWEEPS_FAKE_GPUS"


def fake_gpus() -> int | None:
    """The number of declared GPUs; None if GPUs are real.

    Raises:
        InputError: the variable is no whole number.
    """
    text = os.environ.get(FAKE, "")
    if not text:
        return None
    if not text.isdecimal():
        raise InputError(f"{FAKE}={text}: expected a whole number, 0 or more")
    return int(text)


def gpu_count() -> int:
    """GPUs of this machine: real ones that PyTorch can use, or declared ones."""
    if (declared := fake_gpus()) is not None:
        return declared
    import torch

    return torch.cuda.device_count()


def device_for(gpus: float) -> str:
    """The device of a process that has so many GPUs, or a share of one: "cuda" or "cpu"."""
    return "cuda" if gpus and fake_gpus() is None else "cpu"


def own_device() -> str:
    """The device of a process to which nothing was assigned, such as a command: a GPU if there is one."""
    return device_for(gpu_count())
