"""Settings of the training loop, equal for all methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import LARGEST_SEED, MOST_STEPS, require, require_within


@dataclass(frozen=True)
class TrainingSettings:
    """The loop's settings.

    Attributes:
        max_steps: optimiser steps; 0 trains nothing and validates what `checkpoint` holds.
        batch_size: pairs in one step over all workers and accumulated parts together.
        accumulate: parts a worker's batch is split into, to save memory.
        learning_rate: Adam's, at its peak; `warmup_steps` leads up to it linearly.
        rate_factor: multiplies it. Questions search over this one, since the right rate differs between methods and
            sizes and the presets know it.
        beta1, beta2: Adam's decays. Adversarial training wants them lower.
        schedule: what follows the warm-up.
        ema_decay: of the averaged weights, which are what is validated. Shorter runs average over less.
        precision: of the forward and backward passes; weights stay in float32.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        channels_last: keep the weights of convolutions in that memory format.
        compile: compile the networks with torch.compile; the first step then takes minutes.
        reports: validations over `max_steps`, at most; the last one is at the last step.
        log_every: steps between two rows of loss terms in TensorBoard.
        stability_draws: restorations of every validation image with different noise, for the metrics of stability;
            1 measures none.
        seed: fixes order, noise and initialisation.
    """

    max_steps: int = 500_000
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 5e-5
    rate_factor: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 5000
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip_gradient: float = 0.0
    ema_decay: float = 0.999
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    reports: int = 50
    log_every: int = 100
    validation_batch: int = 8
    stability_draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_within(
            "training",
            self,
            max_steps=(0, MOST_STEPS),
            batch_size=(1, 65_536),
            accumulate=(1, 65_536),
            warmup_steps=(0, MOST_STEPS),
            weight_decay=(0, 1000),
            clip_gradient=(0, 1_000_000),
            reports=(1, 10_000),
            log_every=(1, MOST_STEPS),
            validation_batch=(1, 65_536),
            stability_draws=(1, 1000),
            seed=(0, LARGEST_SEED),
        )
        # However large: that a trial diverges is a result.
        for name in ("learning_rate", "rate_factor"):
            positive = math.isfinite(getattr(self, name)) and getattr(self, name) > 0
            require(positive, f"training.{name}", getattr(self, name), "a number above 0")
        finite = f"a finite product with training.learning_rate={self.learning_rate}"
        require(math.isfinite(self.peak_rate), "training.rate_factor", self.rate_factor, finite)
        for name in ("ema_decay", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"training.{name}", getattr(self, name), "a number in [0, 1)")
        require(
            self.batch_size % self.accumulate == 0,
            "training.accumulate",
            self.accumulate,
            f"a divisor of training.batch_size={self.batch_size}",
        )

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.learning_rate * self.rate_factor

    @property
    def report_every(self) -> int:
        """Steps between two reports; the last report is at `max_steps` whether or not this divides it."""
        return max(1, -(-self.max_steps // self.reports))
