"""The noise schedule of a base, as a trial uses it."""

from __future__ import annotations

from pathlib import Path

from trainables.common.errors import InputError, blamed_on
from trainables.diffusion.gaussian import GaussianDiffusion, alphas_cumprod
from trainables.pretrained.base_model import load_scheduler_config, read_shape
from trainables.settings import DiffusionSettings


def base_diffusion(folder: Path, settings: DiffusionSettings, frozen: bool = False) -> GaussianDiffusion:
    """The schedule that the base was trained with, changed as the trial's settings ask.

    Args:
        frozen: the base's UNet is not trained, so its prediction type cannot change.

    Raises:
        InputError: the trial wants another prediction type without `diffusion.retarget`, or the base has another range
            of timesteps or an unknown schedule.
    """
    config, shape = load_scheduler_config(folder), read_shape(folder)
    predicts = shape.prediction_type if settings.prediction_type == "base" else settings.prediction_type
    if predicts != shape.prediction_type and (frozen or not settings.retarget):
        way_out = "" if frozen else ", or diffusion.retarget=true to train it towards another"
        raise InputError(
            f"diffusion.prediction_type={predicts}: the base at {folder} predicts {shape.prediction_type}; "
            f"expected base{way_out}"
        )
    if config.get("trained_betas") is not None:
        raise InputError(f"base.weights={folder}: its scheduler has trained_betas; expected a beta_schedule by name")
    if settings.max_timestep > shape.num_train_timesteps:
        raise InputError(
            f"diffusion.max_timestep={settings.max_timestep}: expected 1 to {shape.num_train_timesteps}, the length of "
            f"the schedule of the base at {folder}"
        )
    with blamed_on(f"base.weights={folder}: its scheduler"):
        abar = alphas_cumprod(
            shape.num_train_timesteps,
            config.get("beta_start", 0.0001),  # diffusers' defaults for missing keys
            config.get("beta_end", 0.02),
            config.get("beta_schedule", "linear"),
            zero_terminal_snr(folder, settings),
        )
    with blamed_on("diffusion.prediction_type"):
        return GaussianDiffusion(abar, predicts, settings.max_timestep)  # type: ignore[arg-type]  # read_shape checked


def zero_terminal_snr(folder: Path, settings: DiffusionSettings) -> bool:
    """Whether the last timestep is pure noise: as the trial's settings say, or else as the base was trained."""
    return settings.zero_terminal_snr or bool(load_scheduler_config(folder).get("rescale_betas_zero_snr"))


def steps_offset(folder: Path) -> int:
    """The offset that the base's scheduler adds to "leading" timesteps."""
    return int(load_scheduler_config(folder).get("steps_offset", 0))
