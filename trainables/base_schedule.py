"""The noise schedule of a base as a trial uses it, and the base's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trainables.base_model import find_base, load_scheduler_config, read_shape
from trainables.diffusion.gaussian import GaussianDiffusion, alphas_cumprod
from trainables.errors import InputError, blamed_on
from trainables.settings import DiffusionSettings, TrialSettings
from trainables.weights import fingerprint


def base_diffusion(folder: Path, settings: DiffusionSettings) -> GaussianDiffusion:
    """The schedule that the base was trained with, as far as the trial keeps to it.

    Raises:
        InputError: the base predicts something else and was not asked to be retargeted, or has another range of
            timesteps, or a schedule we do not know.
    """
    config, shape = load_scheduler_config(folder), read_shape(folder)
    if settings.prediction_type != shape.prediction_type and not settings.retarget:
        raise InputError(
            f"diffusion.prediction_type={settings.prediction_type}: the base at {folder} predicts "
            f"{shape.prediction_type}; expected that, or diffusion.retarget=true to train it towards another"
        )
    if settings.max_timestep > shape.num_train_timesteps:
        raise InputError(
            f"diffusion.max_timestep={settings.max_timestep}: expected 1 to {shape.num_train_timesteps}, the length of "
            f"the schedule of the base at {folder}"
        )
    with blamed_on(f"base.weights={folder}: its scheduler"):
        abar = alphas_cumprod(
            shape.num_train_timesteps,
            config["beta_start"],
            config["beta_end"],
            config["beta_schedule"],
            settings.zero_terminal_snr or bool(config.get("rescale_betas_zero_snr")),
        )
    with blamed_on("diffusion.prediction_type"):
        return GaussianDiffusion(abar, settings.prediction_type, settings.max_timestep)


def steps_offset(folder: Path) -> int:
    """What the base's scheduler adds to "leading" timesteps."""
    return int(load_scheduler_config(folder).get("steps_offset", 0))


def base_fingerprint(settings: TrialSettings, part: Literal["unet", "vae"] = "unet") -> str:
    """Identifies a part of the base by content."""
    return fingerprint(find_base(settings.base.weights, settings.base.revision) / part)
