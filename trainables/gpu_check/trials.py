"""The trials of the GPU check: every method of the registry at the size of a `sample` preset, with its shipped weights.

All loss terms are active from the first step. Nothing random happens inside a network, and every batch is drawn on the
CPU, so that two devices train on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.data.batches import TrainingBatches
from trainables.data.prepared import Prepared
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset
from trainables.training.checkpoint_folders import keep_checkpoint
from trainables.training.loop import Trainer, World
from trainables.training.reporting import Report

METRICS = ("val/psnr", "val/ssim")
Losses = list[Mapping[str, float]]
"""Step by step, term -> raw value."""

_SMALL: dict[str, Any] = {
    "pairs.train_pairs": 16,
    "pairs.validation_pairs": 2,
    "pairs.test_pairs": 0,
    "sinsr.draws": 1,
    "first_stage.draws": 1,
    "training.reports": 2,
    "training.warmup_steps": 0,
    "training.schedule": "constant",
    "training.log_every": 1,
    "training.validation_batch": 2,
    "training.checkpoint_minutes": 0.0,
}
_EVERY_TERM: dict[str, Any] = {
    "perceptual.every": 1,
    "cfw.adversarial_start": 0,
    "ccsr.adversarial_start": 0,
    "one_step.distillation": 1.0,
    "one_step.adversarial": 0.1,
}
_NO_DROPOUT: dict[str, Any] = {"pix2pix.dropout": False, "lora.dropout": 0.0}


def check_settings(method: str, steps: int, preset_name: str = "sample") -> TrialSettings:
    """A trial of the check, in fp32. Reports, with a checkpoint each, are in the middle and at the end."""
    chosen = preset(preset_name)
    changes = {**chosen.methods.get(method, {}), **_SMALL, **_EVERY_TERM, **_NO_DROPOUT}
    return override(chosen.trial, {**changes, "method": method, "training.max_steps": steps})


class BatchesOfTheCPU:
    """Batches that are drawn on the CPU and sent to a device: a GPU would draw other noise."""

    def __init__(self, batches: TrainingBatches, device: torch.device) -> None:
        self._batches, self._device = batches, device

    def __call__(self, step: int) -> dict[str, Tensor]:
        return {name: values.to(self._device) for name, values in self._batches(step).items()}


def make_trainer(settings: TrialSettings, prepared: Prepared, device: torch.device) -> Trainer:
    trainer = Trainer(settings, prepared, METRICS, World(device=device))
    drawn = TrainingBatches(prepared, settings, trainer.method.columns(settings), torch.device("cpu"))
    trainer.batches = BatchesOfTheCPU(drawn, device)  # type: ignore[assignment]  # called in the same way
    return trainer


class Kept:
    """A reporter that keeps the reports, and checkpoints in a trial's folder if there is one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.reports: list[Report] = []
        self.checkpoints: list[Path] = []

    def __call__(self, report: Report, write: Callable[[Path], None]) -> None:
        if report.start or report.repeated:
            return
        self.reports.append(report)
        if self.folder is not None:
            self.checkpoints.append(keep_checkpoint(self.folder, report.step, write))

    @property
    def losses(self) -> Losses:
        rows = [row for report in self.reports for _, row in report.losses]
        return [{tag: value for tag, value in row.items() if tag.startswith("loss/")} for row in rows]
