"""The sizes that one code path comes in. A preset is a full set of settings, and what a sweep of it does by default."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.data.degradation_settings import MILD, DegradationSettings, PairSettings
from trainables.errors import InputError
from trainables.settings import (
    AutoencoderSettings,
    DataSettings,
    NetworkSettings,
    SinSRSettings,
    TeacherSettings,
    TrainingSettings,
    TrialSettings,
)


@dataclass(frozen=True)
class Preset:
    """Attributes:
    purpose: one line for `--list`.
    trial: the settings every trial starts from.
    trials: how many trials a sweep runs unless told otherwise.
    needs: settings that have no default and must be given, with what they are.
    """

    purpose: str
    trial: TrialSettings
    trials: int
    needs: tuple[tuple[str, str], ...] = ()


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

_OFFICIAL_AUTOENCODER = AutoencoderSettings("weights/autoencoder_vq_f4.pth")
_OFFICIAL_TEACHER = TeacherSettings("weights/resshift_realsrx4_s15_v1.pth")

PRESETS: dict[str, Preset] = {
    "sample": Preset("laptop CPU, the photographs of scikit-image, about a minute a trial", _SAMPLE, trials=14),
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
