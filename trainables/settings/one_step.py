"""Settings of the one-step method on a pretrained base."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.settings.checks import GUIDANCE, MOST_STEPS, WEIGHT, require_within
from trainables.settings.setting import Limits, setting

_NO_DISTILLATION = {"one_step.distillation": 0.0, "one_step.classifier_distillation": 0.0}
_SCALE = Limits(0, 10, "a number from 0 to 10")


@dataclass(frozen=True)
class OneStepSettings:
    """One-step restoration with a pretrained base (Wu et al. 2024, OSEDiff). Defaults are the published ones, without
    the distillation of the base's score. With `dual`, two LoRAs whose scales can be changed without training (Sun et
    al. 2024, PiSA-SR).

    Attributes:
        timestep: timestep at which the UNet sees the degraded latent, from 0 to the last of the base's schedule;
            published: 999.
        train_conv_in: train the UNet's first convolution as a whole, next to the LoRA.
        l2: weight of the squared error of the restored image; `perceptual.weight` is that of LPIPS, published: 2.
        latent_l2: weight of the squared error of the restored latent, 0 or more. Dong et al. (TSD-SR, CVPR 2025) train
            with 1 and without `l2`. Then only steps with the perceptual or the adversarial term decode, see
            `perceptual.every`.
        distillation: weight of variational score distillation, which keeps restored latents likely for the base;
            published: 1. 0 leaves it out, with its two additional UNets.
        classifier_distillation: weight of classifier score distillation, which pulls restored latents away from the
            negative prompt of `base.prompts` and towards the positive one; published for `dual`: 1. 0 leaves it out,
            with its additional UNet.
        guidance: factor of guidance by prompts in the base's estimates of both distillations, 0 to 100; published: 7.5.
            1 uses the positive prompt alone.
        score_rank: rank of the second LoRA, which learns the score of restored latents.
        adversarial: weight of the adversarial term; published: 0.
        adversarial_start: first step with the adversarial term and its discriminator; with `dual` not before
            `pixel_steps`.
        dual: two LoRAs, trained one after the other: a pixel LoRA (and the first convolution) with L2 alone, then a
            semantic LoRA on top of it with all terms. The UNet then predicts the residual: the degraded latent minus
            the restored one. Published with timestep 1.
        pixel_steps: with `dual`, optimiser steps of the pixel LoRA; it is frozen afterwards. Below
            `training.max_steps`; published: 4000.
        semantic_rank: with `dual`, rank of the semantic LoRA; `lora.rank` is that of the pixel LoRA. Published: 4.
        pixel_scale: with `dual`, factor of the pixel LoRA's residual, 0 to 10; 1 as trained, 0 leaves it out.
        semantic_scale: with `dual`, factor of the semantic LoRA's part of the residual, 0 to 10; a higher value gives
            more detail. 1 as trained. Unless it equals `pixel_scale` or is 0, the UNet runs twice.
    """

    timestep: int = setting(999, within=(0, 9999))
    train_conv_in: bool = True
    l2: float = setting(1.0, within=WEIGHT, training_only=True)
    latent_l2: float = setting(0.0, within=WEIGHT, training_only=True)
    distillation: float = setting(0.0, within=WEIGHT, training_only=True)
    classifier_distillation: float = setting(0.0, within=WEIGHT, training_only=True)
    guidance: float = setting(1.0, within=GUIDANCE, training_only=True, unless=_NO_DISTILLATION)
    score_rank: int = setting(4, within=(1, 4096), training_only=True, unless={"one_step.distillation": 0.0})
    adversarial: float = setting(0.0, within=WEIGHT, training_only=True)
    adversarial_start: int = setting(0, within=(0, MOST_STEPS), training_only=True, adversarial=True)
    dual: bool = False
    pixel_steps: int = setting(4000, within=(1, MOST_STEPS), training_only=True, unless={"one_step.dual": False})
    semantic_rank: int = setting(4, within=(1, 4096), unless={"one_step.dual": False})
    pixel_scale: float = setting(1.0, within=_SCALE, restores="sampling", unless={"one_step.dual": False})
    semantic_scale: float = setting(1.0, within=_SCALE, restores="sampling", unless={"one_step.dual": False})

    def __post_init__(self) -> None:
        require_within("one_step", self)
