"""Settings of the training loop, the same for all methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import DECAY, LARGEST_SEED, MOST_STEPS, require, require_within
from trainables.settings.setting import Limits, setting

# Without an upper limit: a diverging trial is a result.
_RATE = Limits(0, math.inf, "a number above 0", open_low=True, open_high=True)


@dataclass(frozen=True)
class TrainingSettings:
    """Optimiser, batches, precision, validation and seed.

    Attributes:
        max_steps: optimiser steps; 0 only validates the weights of `checkpoint`.
        batch_size: pairs per step, over all workers and accumulated parts together.
        accumulate: parts into which a worker's batch is split to save memory; must divide `batch_size`.
        learning_rate: peak learning rate of Adam.
        rate_factor: multiplier of `learning_rate`. Spaces search over it, because presets set a learning rate for each
            method and size.
        beta1, beta2: Adam's decay rates, in [0, 1). Adversarial training needs lower ones.
        warmup_steps: number of first steps in which the learning rate rises linearly to its peak.
        schedule: learning rate after the warm-up: constant, or half a cosine down to 0.
        weight_decay: decoupled weight decay, as in AdamW; 0 for none.
        clip_gradient: largest gradient norm of a phase; 0 disables clipping.
        ema_decay: decay of the averaged weights, in [0, 1); validation uses the average. Shorter runs need a smaller
            decay.
        precision: number format of the forward and backward passes; weights are kept in float32.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        channels_last: keep the weights of convolutions in the channels-last memory format.
        compile: compile the networks with torch.compile; the first step then takes minutes.
        reports: largest number of validations; the last one is at the last step.
        log_every: steps between two rows of loss terms in TensorBoard.
        validation_batch: pairs per batch in validation.
        stability_draws: restorations of every validation image with different noise, for the stability metrics;
            1 measures none.
        seed: seed of order, noise and initialisation.
    """

    max_steps: int = setting(500_000, within=(0, MOST_STEPS), shared=True, flag="--max-steps", when_restoring=0)
    batch_size: int = setting(64, within=(1, 65_536), training_only=True)
    accumulate: int = setting(1, within=(1, 65_536), training_only=True)
    learning_rate: float = setting(5e-5, within=_RATE, training_only=True)
    rate_factor: float = setting(1.0, within=_RATE, training_only=True)
    beta1: float = setting(0.9, within=DECAY, training_only=True)
    beta2: float = setting(0.999, within=DECAY, training_only=True)
    warmup_steps: int = setting(5000, within=(0, MOST_STEPS), training_only=True)
    schedule: Literal["constant", "cosine"] = setting("constant", training_only=True)
    weight_decay: float = setting(0.0, within=(0, 1000), training_only=True)
    clip_gradient: float = setting(0.0, within=(0, 1_000_000), training_only=True)
    ema_decay: float = setting(0.999, within=DECAY, training_only=True)
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", restores="sampling")
    gradient_checkpointing: bool = setting(False, training_only=True)
    channels_last: bool = False
    compile: bool = False
    reports: int = setting(50, within=(1, 10_000), shared=True, training_only=True)
    log_every: int = setting(100, within=(1, MOST_STEPS), training_only=True)
    validation_batch: int = setting(8, within=(1, 65_536))
    stability_draws: int = setting(1, within=(1, 1000), shared=True)
    seed: int = setting(0, within=(0, LARGEST_SEED), flag="--seed")

    def __post_init__(self) -> None:
        require_within("training", self)
        finite = f"a finite product with training.learning_rate={self.learning_rate}"
        require(math.isfinite(self.peak_rate), "training.rate_factor", self.rate_factor, finite)
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
        """Steps between two reports. The last report is always at `max_steps`."""
        return max(1, -(-self.max_steps // self.reports))
