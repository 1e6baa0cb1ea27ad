"""All settings of a trial, typed and validated.

They are one frozen dataclass of sections. Space files, `--set` flags and Optuna's samples name a field by its dotted
name (`sinsr.ground_truth`, `training.max_steps`) and change it only through `override`, which checks every value.
Nothing here imports torch, so reading and checking settings takes milliseconds.
"""

from __future__ import annotations

from trainables.settings.diffusion import (
    CCSRSettings,
    CFWSettings,
    ControlNetSettings,
    ConvInSettings,
    DiffusionSettings,
    FirstStageSettings,
    LoRASettings,
    PixelSettings,
    StableSRSettings,
)
from trainables.settings.effects import check_sections, is_read, reason_unread
from trainables.settings.gan import DiscriminatorSettings, PerceptualSettings, Pix2PixSettings
from trainables.settings.one_step import OneStepSettings
from trainables.settings.override import assignments, flatten, override, section_defaults
from trainables.settings.resshift import (
    NetworkSettings,
    ResShiftLossSettings,
    ResShiftSettings,
    SinSRSettings,
    TeacherSettings,
)
from trainables.settings.sources import SAMPLE, SHIPPED, AutoencoderSettings, BaseSettings, DataSettings
from trainables.settings.training import TrainingSettings
from trainables.settings.trial import TrialSettings

__all__ = [
    "SAMPLE",
    "SHIPPED",
    "AutoencoderSettings",
    "BaseSettings",
    "CCSRSettings",
    "CFWSettings",
    "ControlNetSettings",
    "ConvInSettings",
    "DataSettings",
    "DiffusionSettings",
    "DiscriminatorSettings",
    "FirstStageSettings",
    "LoRASettings",
    "NetworkSettings",
    "OneStepSettings",
    "PerceptualSettings",
    "Pix2PixSettings",
    "PixelSettings",
    "ResShiftLossSettings",
    "ResShiftSettings",
    "SinSRSettings",
    "StableSRSettings",
    "TeacherSettings",
    "TrainingSettings",
    "TrialSettings",
    "assignments",
    "check_sections",
    "flatten",
    "is_read",
    "override",
    "reason_unread",
    "section_defaults",
]
