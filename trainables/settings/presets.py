"""The presets. A preset has all settings of a trial and the defaults of a sweep; all presets run the same code.

Those with the numbers of published trainings have their trial in `trainables.settings.published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trainables.common.errors import InputError
from trainables.settings import (
    SHIPPED,
    DataSettings,
    NetworkSettings,
    ResShiftSettings,
    SinSRSettings,
    TrainingSettings,
    TrialSettings,
    flatten,
    published,
)
from trainables.settings.degradation import MILD
from trainables.settings.pairs import PairSettings
from trainables.settings.print_to_camera import MILD_PRINT
from trainables.settings.roles import is_among


@dataclass(frozen=True)
class Preset:
    """Attributes:
    purpose: one line for `--list`.
    trial: the settings from which every trial starts.
    trials: default number of trials of a sweep.
    needs: (setting, flag and its meaning) for each setting without a default.
    methods: method -> its values of settings, where they differ from `trial`.
    checkpoint: default finished trial for evaluation-only spaces.
    workers: processes per trial. gpus: GPUs per process.
    """

    purpose: str
    trial: TrialSettings
    trials: int
    needs: tuple[tuple[str, str], ...] = ()
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint: str = ""
    workers: int = 1
    gpus: float = 0.0


_SAMPLE = TrialSettings(
    data=DataSettings(source="sample"),
    pairs=PairSettings(
        image_size=64,
        train_pairs=384,
        validation_pairs=48,
        validation_size=64,
        test_pairs=48,
        degradation=MILD,
    ),
    network=NetworkSettings(
        image_size=16,
        latent_channels=8,
        model_channels=64,
        channel_mult=(1, 1),
        num_res_blocks=(2, 2),
        attention_resolutions=(8,),
        swin_depth=2,
        swin_embed_dim=64,
        window_size=4,
        mlp_ratio=2.0,
    ),
    # The chain ends at much noise, so the last estimate is an average of the images that are possible there. A teacher
    # this small invents texture otherwise; see the model card. kappa below 2 needs a lower min_noise_level.
    resshift=ResShiftSettings(min_noise_level=0.66, bounded=False),
    sinsr=SinSRSettings(draws=4),
    training=TrainingSettings(
        max_steps=300,
        batch_size=4,
        learning_rate=2e-4,
        warmup_steps=20,
        schedule="cosine",
        ema_decay=0.98,
        reports=6,
        log_every=10,
        validation_batch=16,
    ),
)

# This base is so small that adapting only its attention layers is not enough.
ALL_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "time_emb_proj"),
)
# For decoders that are trained with a discriminator, as in their official code.
_ADVERSARIAL_BETAS: dict[str, object] = {"training.beta1": 0.5, "training.beta2": 0.9}

# The published Pix2Pix uses batches of one, in training and in use. So its batch normalisation, which learns a scale
# and shift, normalises each image. The running statistics of larger batches differ from the statistics under
# which its deepest layers were trained.
_PIX2PIX_NORM = "instance_affine"
# Pix2Pix as published: batches of one, with the images per step of the other methods; linear decay over the second
# half; raw weights.
_PIX2PIX_TRAINING: dict[str, Any] = {
    "training.optimiser": "adam",
    "training.beta1": 0.5,
    "training.warmup_steps": 0,
    "training.schedule": "linear",
    "training.decay_start": 0.5,
    "training.ema_decay": 0.0,
}

# Of ten-step diffusion. With a tenth of the weight in every fourth step, 300 steps of `latent_diffusion` end where the
# input is, at ST-LPIPS 0.283; with these values at 0.229. The space perceptual_frequency asks this.
_PERCEPTUAL: dict[str, Any] = {"perceptual.weight": 1.0, "perceptual.every": 1}

# Values for this size: learning rates found by hand, networks with about the same cost per step.
_SAMPLE_METHODS: dict[str, dict[str, Any]] = {
    # A student starts as its teacher's one step, at ST-LPIPS 0.243. It reaches the 0.224 of 15 steps after 100;
    # at four times the rate after 25, and ends at 0.237.
    "sinsr": {"training.max_steps": 100, "training.reports": 4, "training.learning_rate": 5e-5},
    # It starts from nothing, and its steps are cheap.
    "resshift": {"training.max_steps": 900, "training.learning_rate": 2e-3},
    "pix2pix": {
        "pix2pix.ngf": 24,
        "pix2pix.downs": 6,
        "pix2pix.norm": _PIX2PIX_NORM,
        "discriminator.ndf": 16,
        "discriminator.layers": 2,
        "perceptual.weight": 0.0,
        "training.beta1": 0.5,
        "training.learning_rate": 1e-3,
    },
    "latent_diffusion": {
        "lora.rank": 16,
        "lora.targets": ALL_LAYERS,
        # Predicting x_0 restored best from pure noise with so few steps, with version 0.1's base; the space
        # prediction_type asks this.
        "diffusion.prediction_type": "sample",
        "diffusion.retarget": True,
        "diffusion.inference_steps": 10,
        **_PERCEPTUAL,
        "training.learning_rate": 6e-3,
        "training.clip_gradient": 1.0,
    },
    "controlnet_diffusion": {
        "controlnet.embedding_channels": (16, 32, 64),
        # The base is frozen, so it still predicts noise.
        "diffusion.max_timestep": 500,
        "diffusion.inference_steps": 10,
        **_PERCEPTUAL,
        "training.learning_rate": 1e-3,
        "training.clip_gradient": 1.0,
    },
    "stablesr": {
        "stablesr.width": 32,
        "stablesr.layers": 1,
        "stablesr.modulation": "sft",
        "stablesr.colour": "none",  # a print changes colours, so those of the degraded image are wrong
        # As for the ControlNet.
        "diffusion.max_timestep": 500,
        "diffusion.inference_steps": 10,
        **_PERCEPTUAL,
        "training.learning_rate": 1e-3,
        "training.clip_gradient": 1.0,
    },
    "one_step": {
        "lora.rank": 16,
        "lora.targets": ALL_LAYERS,
        "one_step.timestep": 250,
        "one_step.pixel_steps": 100,
        "one_step.semantic_rank": 16,
        "discriminator.ndf": 16,
        "discriminator.layers": 2,
        "perceptual.weight": 2.0,
        "training.learning_rate": 3e-3,
        "training.clip_gradient": 1.0,
    },
    "pixel_diffusion": {
        "pixel.channels": (24, 48, 72),
        "pixel.layers": 1,
        "pixel.attention_levels": 1,
        "pixel.norm_groups": 8,
        "diffusion.prediction_type": "sample",
        "diffusion.inference_steps": 10,
        **_PERCEPTUAL,
        "training.learning_rate": 1e-3,
        "training.clip_gradient": 1.0,
    },
    "stablesr_cfw": {
        "cfw.growth": 8,
        "cfw.colour": "none",
        "discriminator.ndf": 16,
        "discriminator.layers": 2,
        "cfw.adversarial_start": 60,
        "perceptual.weight": 1.0,
        "training.learning_rate": 5e-4,
        **_ADVERSARIAL_BETAS,
    },
    "ccsr": {
        "ccsr.steps": 15,
        "discriminator.ndf": 16,
        "discriminator.layers": 2,
        "ccsr.adversarial_start": 60,
        "perceptual.weight": 1.0,
        "training.learning_rate": 2e-4,
        **_ADVERSARIAL_BETAS,
    },
}


def _on_gpus(purpose: str, trial: TrialSettings, images: str, **more: Any) -> Preset:
    """A preset for the user's own images, with a GPU for each process.

    Args:
        images: what `--data` must hold. more: what differs, by field of `Preset`.
    """
    return Preset(purpose, trial, trials=20, needs=(("data.source", f"--data FOLDER with {images}"),), gpus=1.0, **more)


def _as_published(trial: TrialSettings, *names: str) -> dict[str, Any]:
    """Values of a published trial: of settings, or of all settings of a section ("training.")."""
    return {name: value for name, value in flatten(trial).items() if is_among(name, names)}


_PAIRED = "pairs (input/ and target/), or with photographs for simulated pairs"

PRESETS: dict[str, Preset] = {
    "sample": Preset(
        "laptop CPU, 17 photographs that need no download, about a minute per trial",
        _SAMPLE,
        trials=9,
        methods=_SAMPLE_METHODS,
    ),
    "sample-print": Preset(
        "as sample, but the degraded images are simulated photographs of prints",
        replace(
            _SAMPLE,
            method="latent_diffusion",
            pairs=replace(_SAMPLE.pairs, scale=1, simulator="print_to_camera", print=MILD_PRINT),
        ),
        trials=12,
        # beat_pix2pix compares with it, so it trains as published. It restores better so: on the validation crops by
        # 0.04 in ST-LPIPS and 0.7 dB.
        methods=_SAMPLE_METHODS
        | {
            "pix2pix": _SAMPLE_METHODS["pix2pix"]
            | _PIX2PIX_TRAINING
            | {"training.updates": 4, "training.learning_rate": 5e-4}
        },
        checkpoint=SHIPPED,
    ),
    "sinsr-stage1": _on_gpus(
        "one GPU, about 5,000 images at 128 px, batch 1, 20,000 steps per trial",
        published.SINSR_STAGE1,
        "about 5,000 photographs",
    ),
    "sinsr-stage2": _on_gpus(
        "two GPUs per trial, about 70,000 images at 256 px, batch 8, 500,000 steps per trial",
        published.SINSR_STAGE2,
        "about 70,000 photographs",
        workers=2,
    ),
    "resshift": _on_gpus(
        "one GPU per trial, ResShift in 15 steps as published, batch 64, 300,000 steps per trial",
        published.RESSHIFT,
        "about 70,000 photographs",
    ),
    "resshift-journal": _on_gpus(
        "one GPU per trial, ResShift in 4 steps with LPIPS, batch 96, 400,000 steps per trial",
        published.RESSHIFT_JOURNAL,
        "about 70,000 photographs",
    ),
    "marigold": _on_gpus(
        "one GPU per trial, paired folders at 512 px, the whole UNet of Stable Diffusion 2, 30,000 steps per trial",
        published.MARIGOLD,
        _PAIRED,
    ),
    "stablesr": _on_gpus(
        "one GPU per trial, StableSR's time-aware encoder at 512 px, batch 192, 16,500 steps per trial",
        published.STABLESR,
        "about 25,000 photographs",
        # Not in the trial, because some spaces cut the schedule of others below these steps.
        methods={
            "stablesr": {
                "pairs.undamaged": 0.01,
                "diffusion.sampler": "ancestral",
                "diffusion.inference_steps": 200,
                "diffusion.spacing": "linspace",
            }
        },
    ),
    "ccsr-stage1": _on_gpus(
        "one GPU per trial, CCSR's ControlNet on latents at 512 px, batch 192, 25,001 steps per trial",
        published.CCSR_STAGE1,
        "about 70,000 photographs",
        methods={"controlnet_diffusion": {"diffusion.objective": "ccsr"}},
    ),
    "ccsr-stage2": _on_gpus(
        "one GPU per trial, CCSR's decoder on --set first_stage.weights=FOLDER (a finished ccsr-stage1), 60 steps",
        published.CCSR_STAGE2,
        "about 70,000 photographs",
        methods={"stablesr_cfw": {"cfw.adversarial_start": 1}},  # its own start is after the last step
    ),
    "osediff": _on_gpus(
        "one GPU per trial, OSEDiff's LoRA on Stable Diffusion 2.1 at 512 px, batch 16, 100,000 steps per trial",
        published.OSEDIFF,
        "about 70,000 photographs",
    ),
    "pisasr": _on_gpus(
        "one GPU per trial, PiSA-SR's two LoRAs on Stable Diffusion 2.1 at 512 px, batch 16, 100,000 steps per trial",
        published.PISASR,
        "about 70,000 photographs",
    ),
    "print-to-camera": _on_gpus(
        "one GPU per trial, paired folders at 512 px, Stable Diffusion with LoRA or Pix2Pix, 25,000 steps per trial",
        published.PRINT_TO_CAMERA,
        _PAIRED,
        methods={
            "pix2pix": {
                "pix2pix.norm": _PIX2PIX_NORM,
                "perceptual.weight": 0.0,
                **_PIX2PIX_TRAINING,
                "training.updates": 8,
                "training.learning_rate": 2e-4,
                "training.precision": "fp32",
                "training.clip_gradient": 0.0,
            },
            "controlnet_diffusion": {"training.learning_rate": 1e-5},
            "stablesr": {"training.learning_rate": 5e-5, "stablesr.colour": "none"},
            "stablesr_cfw": {
                "cfw.colour": "none",
                "perceptual.weight": 1.0,
                "perceptual.network": "lpips_vgg",
                "training.optimiser": "adam",
                "training.learning_rate": 5e-5,
                **_ADVERSARIAL_BETAS,
                "training.warmup_steps": 0,
                "training.clip_gradient": 0.0,
                "training.ema_decay": 0.0,
                "training.precision": "fp32",
            },
            # 60 updates of 512 images: the steps of a decoder that starts from the base's, not those of a denoiser.
            "ccsr": _as_published(published.CCSR_STAGE2, "perceptual.", "training."),
            # With the steps and images per step of the methods that it is compared with.
            "one_step": _as_published(
                published.OSEDIFF,
                *("lora.", "one_step.", "perceptual."),
                *("training.learning_rate", "training.weight_decay", "training.warmup_steps"),
                *("training.clip_gradient", "training.ema_decay", "training.precision"),
            ),
        },
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: no such preset; the message lists the presets.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: no such preset; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
