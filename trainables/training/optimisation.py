"""The optimisers and learning-rate schedules that all methods share."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainables.settings import TrainingSettings


def learning_rate_factor(settings: TrainingSettings, step: int) -> float:
    """The factor of the peak learning rate at optimiser step `step` (from 0)."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    begin = settings.decay_begins
    if settings.schedule == "constant" or step < begin:
        return 1.0
    end, floor = settings.decay_end * settings.max_steps, settings.final_rate
    done = min(1.0, (step - begin) / max(1, end - begin))
    if settings.schedule == "exponential":
        return float(floor**done)
    left = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return floor + (1 - floor) * left


def make_optimiser(settings: TrainingSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of one phase, at the peak learning rate.

    PyTorch's Adafactor steps with min(rate, 1 / sqrt(t)) in update t, whatever the schedule says; its weight decay has
    the rate itself. It factors the last two axes of a weight only.
    """
    parameters, rate, decay = list(parameters), settings.peak_rate, settings.weight_decay
    if settings.optimiser == "adafactor":
        return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=(settings.beta1, settings.beta2), weight_decay=decay, fused=True)
