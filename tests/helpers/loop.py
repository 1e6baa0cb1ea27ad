"""Runs the loop without Ray, and compares its results bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainables.data.prepared import Prepared
from trainables.pretrained.finished_trial import STATE
from trainables.settings import TrialSettings
from trainables.settings.methods import METHODS
from trainables.training.loop import World, train
from trainables.training.reporting import Report

METRICS = ("val/psnr",)
CPU = torch.device("cpu")

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "pix2pix": {"method": "pix2pix", "pix2pix.downs": 6},  # with fewer, no level has dropout
    "whole UNet": {"method": "latent_diffusion", "lora.rank": 0},
    "CCSR's objective": {
        "method": "latent_diffusion",
        "diffusion.objective": "ccsr",
        "diffusion.inference_steps": 3,
        "lora.dropout": 0.2,
    },
}
"""The variants of training, by name: the settings that change a small trial of the method."""
SHORT: dict[str, Any] = {
    "perceptual.every": 2,
    "training.batch_size": 2,
    "training.log_every": 1,
    "training.max_steps": 4,
    "training.reports": 1,
    "training.warmup_steps": 0,
}

VariantOf = Callable[..., TrialSettings]


@dataclass
class Recorder:
    """A reporter that keeps the reports and, with a folder, a checkpoint of each.

    Attributes:
        starts: the reports before the first step, of trials that start from finished weights.
    """

    folder: Path | None = None
    reports: list[Report] = field(default_factory=list)
    starts: list[Report] = field(default_factory=list)

    def __call__(self, report: Report, write: Callable[[Path], None]) -> None:
        before = report.step == 0 and "train/step_seconds" not in report.metrics
        (self.starts if before else self.reports).append(report)
        if self.folder is not None and not report.repeated:
            checkpoint = self.folder / str(report.step if report.reached is None else report.reached)
            checkpoint.mkdir(parents=True)
            write(checkpoint)

    def metrics(self, *kinds: str) -> list[dict[str, float]]:
        """The metrics of each report that have one of these kinds."""
        return [{k: v for k, v in r.metrics.items() if k.startswith(kinds)} for r in self.reports]


def run(
    settings: TrialSettings, prepared: Prepared, folder: Path | None = None, checkpoint: Path | None = None
) -> Recorder:
    recorder = Recorder(folder)
    train(settings, prepared, METRICS, World(), recorder, checkpoint)
    return recorder


def meet_in(folder: Path, rank: int) -> None:
    """Joins two processes in a group. If one hangs, the other does not wait for ever."""
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=120))


def state_of(checkpoint: Path) -> dict[str, Any]:
    """All that training continues from. The report in it holds times, and means since the report before."""
    state: dict[str, Any] = torch.load(checkpoint / STATE, weights_only=True)
    del state["report"]
    return state


def assert_same(one: Any, two: Any, where: str = "state") -> None:
    """Equal bit by bit, through dictionaries and lists of tensors and numbers.

    This may be asked of two runs on one machine with one thread each: PyTorch allocates at multiples of 64 bytes, so
    that equal numbers pass the same kernels. It may not be asked of other memory, as that of a mapped file.
    """
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for k, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}[{k}]")
    elif isinstance(one, Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, np.ndarray):
        assert one.dtype == two.dtype and np.array_equal(one, two), where
    else:
        assert one == two, where
