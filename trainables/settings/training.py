"""Settings of the training loop, the same for all methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import DECAY, LARGEST_SEED, MOST_STEPS, SHARE, require, require_within
from trainables.settings.setting import Limits, setting

# Without an upper limit: a diverging trial is a result.
_RATE = Limits(0, math.inf, "a number above 0", open_low=True, open_high=True)
_TO_ONE = Limits(0, 1, "a number in (0, 1]", open_low=True)
_CONSTANT = {"training.schedule": "constant"}


@dataclass(frozen=True)
class TrainingSettings:
    """Optimiser, batches, precision, validation and seed.

    Attributes:
        max_steps: optimiser steps; 0 only validates the weights of `checkpoint`.
        batch_size: pairs per step, over all workers and accumulated parts together.
        accumulate: parts into which a worker's batch is split to save memory.
        updates: optimiser updates per step: the batch is divided among them, so that a step trains on as many images as
            that of a method with one update. `batch_size` must be a multiple of `updates` times `accumulate`.
        optimiser: "adamw" (decoupled weight decay), "adam" (weight decay added to the gradient; with none it equals
            AdamW), or "adafactor" (Shazeer and Stern 2018): keeps one number per row and column of a weight's last two
            axes in place of two per weight; a step is in proportion to the weight's size, with a rate of at most
            1/sqrt(update).
        learning_rate: peak learning rate.
        rate_factor: multiplier of `learning_rate`. Spaces search over it, because presets set a learning rate for each
            method and size.
        beta1, beta2: Adam's decay rates, in [0, 1). Adversarial training needs lower ones.
        warmup_steps: number of first steps in which the learning rate rises linearly to its peak.
        schedule: learning rate after the warm-up: constant, or a decay: half a cosine, linear, or exponential.
        decay_start: share of `max_steps` after which the decay begins, in [0, 1); until then the rate is constant. With
            0.9 the first 90 % of the steps do not depend on the length: a run can be cut anywhere and then decayed.
        decay_end: share of `max_steps` at which the decay ends, in (0, 1].
        final_rate: learning rate after the decay, as a share of the peak, 0 to 1; "exponential" needs one above 0.
        weight_decay: weight decay; 0 for none.
        clip_gradient: largest gradient norm of a phase; 0 disables clipping.
        ema_decay: decay of the averaged weights, in [0, 1); validation and the finished trial use the average. Shorter
            runs need a smaller decay. 0 keeps no average: both use the raw weights.
        ema_warmup: let the decay grow from 0.1 to `ema_decay` over the first steps; without it, the decay is constant
            and the initial weights fade slowly.
        precision: number format of the forward and backward passes; trained weights are kept in float32, frozen layers
            of a base in this format.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        channels_last: keep the weights of convolutions in the channels-last memory format.
        compile: compile the networks with torch.compile; the first step then takes minutes.
        cudnn_benchmark: on a GPU, time the algorithms of each convolution in the first steps of training and take the
            fastest. Two runs of one trial may then take different ones, and round differently.
        reports: largest number of validations; the last one is at the last step.
        checkpoint_minutes: minutes after which a trial also writes a checkpoint between two reports; 0 writes them with
            reports only.
        keep: weights that a trial keeps and is judged by: those of the "last" step, or of the "best" one, whose
            validation has the best objective. The best of many validations looks better than it is; the confirmation
            measures it on test photographs.
        log_every: steps between two rows of loss terms in TensorBoard.
        validation_batch: pairs per batch in validation.
        stability_draws: restorations of every validation image with different noise, for the stability metrics;
            1 measures none.
        seed: seed of order, noise and initialisation.
    """

    max_steps: int = setting(500_000, within=(0, MOST_STEPS), shared=True, flag="--max-steps", when_restoring=0)
    batch_size: int = setting(64, within=(1, 65_536), training_only=True)
    accumulate: int = setting(1, within=(1, 65_536), training_only=True)
    updates: int = setting(1, within=(1, 65_536), training_only=True)
    optimiser: Literal["adamw", "adam", "adafactor"] = setting("adamw", training_only=True)
    learning_rate: float = setting(5e-5, within=_RATE, training_only=True)
    rate_factor: float = setting(1.0, within=_RATE, training_only=True)
    beta1: float = setting(0.9, within=DECAY, training_only=True, unless={"training.optimiser": "adafactor"})
    beta2: float = setting(0.999, within=DECAY, training_only=True, unless={"training.optimiser": "adafactor"})
    warmup_steps: int = setting(5000, within=(0, MOST_STEPS), training_only=True)
    schedule: Literal["constant", "cosine", "linear", "exponential"] = setting("constant", training_only=True)
    decay_start: float = setting(0.0, within=DECAY, training_only=True, unless=_CONSTANT)
    decay_end: float = setting(1.0, within=_TO_ONE, training_only=True, unless=_CONSTANT)
    final_rate: float = setting(0.0, within=SHARE, training_only=True, unless=_CONSTANT)
    weight_decay: float = setting(0.0, within=(0, 1000), training_only=True)
    clip_gradient: float = setting(0.0, within=(0, 1_000_000), training_only=True)
    ema_decay: float = setting(0.999, within=DECAY, training_only=True)
    ema_warmup: bool = setting(True, training_only=True, unless={"training.ema_decay": 0.0})
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", restores="sampling")
    gradient_checkpointing: bool = setting(False, training_only=True)
    channels_last: bool = False
    compile: bool = False
    cudnn_benchmark: bool = setting(False, training_only=True)
    reports: int = setting(50, within=(1, 10_000), shared=True, training_only=True)
    checkpoint_minutes: float = setting(10.0, within=(0, 10_000), shared=True, training_only=True)
    keep: Literal["last", "best"] = setting("last", shared=True, training_only=True)
    log_every: int = setting(100, within=(1, MOST_STEPS), training_only=True)
    validation_batch: int = setting(8, within=(1, 65_536))
    stability_draws: int = setting(1, within=(1, 1000), shared=True)
    seed: int = setting(0, within=(0, LARGEST_SEED), flag="--seed")

    def __post_init__(self) -> None:
        require_within("training", self)
        finite = f"a finite product with training.learning_rate={self.learning_rate}"
        require(math.isfinite(self.peak_rate), "training.rate_factor", self.rate_factor, finite)
        for name in ("accumulate", "updates"):
            divisor = f"a divisor of training.batch_size={self.batch_size}"
            require(self.batch_size % getattr(self, name) == 0, f"training.{name}", getattr(self, name), divisor)
        parts = self.updates * self.accumulate
        accepted = f"a multiple of {parts}, training.updates x training.accumulate"
        require(self.batch_size % parts == 0, "training.batch_size", self.batch_size, accepted)
        ends = self.schedule == "constant" or self.decay_start < self.decay_end
        accepted = f"below training.decay_end={self.decay_end}"
        require(ends, "training.decay_start", self.decay_start, accepted)
        falls = self.schedule != "exponential" or self.final_rate > 0
        require(falls, "training.final_rate", self.final_rate, "above 0 with training.schedule=exponential")

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.learning_rate * self.rate_factor

    @property
    def decay_begins(self) -> float:
        """The step after which the learning rate decays; `max_steps` if it is constant."""
        if self.schedule == "constant":
            return self.max_steps
        return max(self.warmup_steps, self.decay_start * self.max_steps)

    @property
    def keeps_best(self) -> bool:
        """Whether a trial keeps the best of its steps; without training there is only one."""
        return self.keep == "best" and self.max_steps > 0

    @property
    def report_every(self) -> int:
        """Steps between two reports. The last report is always at `max_steps`."""
        return max(1, -(-self.max_steps // self.reports))
