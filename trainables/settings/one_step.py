"""Settings of the one-step method on a pretrained base."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.settings.checks import MOST_STEPS, WEIGHT, require_within
from trainables.settings.setting import setting


@dataclass(frozen=True)
class OneStepSettings:
    """One-step restoration with a pretrained base (Wu et al. 2024, OSEDiff). Defaults are the published ones, without
    the distillation of the base's score.

    Attributes:
        timestep: timestep at which the UNet sees the degraded latent, from 0 to the last of the base's schedule;
            published: 999.
        train_conv_in: train the UNet's first convolution as a whole, next to the LoRA.
        l2: weight of the squared error of the restored image; `perceptual.weight` is that of LPIPS, published: 2.
        distillation: weight of variational score distillation, which keeps restored latents likely for the base;
            published: 1. 0 leaves it out, with its two additional UNets.
        score_rank: rank of the second LoRA, which learns the score of restored latents.
        adversarial: weight of the adversarial term; published: 0.
        adversarial_start: first step with the adversarial term and its discriminator.
    """

    timestep: int = setting(999, within=(0, 9999))
    train_conv_in: bool = True
    l2: float = setting(1.0, within=WEIGHT, training_only=True)
    distillation: float = setting(0.0, within=WEIGHT, training_only=True)
    score_rank: int = setting(4, within=(1, 4096), training_only=True, unless=("one_step.distillation", 0.0))
    adversarial: float = setting(0.0, within=WEIGHT, training_only=True)
    adversarial_start: int = setting(0, within=(0, MOST_STEPS), training_only=True, adversarial=True)

    def __post_init__(self) -> None:
        require_within("one_step", self)
