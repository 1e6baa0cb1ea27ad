"""The finished diffusion model whose latents train a decoder: its settings, and how it restores latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainables.common.errors import InputError, blamed_on
from trainables.diffusion.ccsr import sample_truncated
from trainables.diffusion.gaussian import full_timestep
from trainables.diffusion.noise import step_noise
from trainables.methods.build import build_method
from trainables.pretrained.finished_trial import check_asked, finished_settings
from trainables.pretrained.shipped import first_stage_path
from trainables.settings import TrialSettings, flatten, override
from trainables.settings.methods import METHODS
from trainables.settings.roles import WHEN_RESTORING

if TYPE_CHECKING:
    from trainables.methods.shared.gaussian import GaussianMethod

NoiseKeys = Sequence[Sequence[int]]
"""For every image the numbers that determine its noise."""

KINDS = ("latent_diffusion", "controlnet_diffusion", "stablesr")


class FirstStage:
    """Restores latents for the trial's method: by DDIM, or for CCSR by truncated sampling.

    Raises:
        InputError: not a finished trial of `KINDS`, or one of another base than the trial's.
    """

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self.settings = settings
        name = f"first_stage.weights={settings.first_stage.weights}"
        try:
            # Its weights stay in float32, because it samples without autocast.
            whole = override(first_stage_settings(settings), {"training.precision": "fp32"})
            method = build_method(whole, device)
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
        method.networks.eval().requires_grad_(False)
        self.method: GaussianMethod = method  # type: ignore[assignment]  # the settings name one of `KINDS`
        diffusion = self.method.diffusion
        if settings.method == "ccsr" and diffusion.max_timestep < diffusion.train_timesteps:
            raise InputError(
                f"{name}: trained with diffusion.max_timestep={diffusion.max_timestep}; CCSR "
                f"samples from full noise and needs all {diffusion.train_timesteps}"
            )

    @torch.no_grad()
    def __call__(self, y: Tensor, noise: Tensor, keys: NoiseKeys, x0: Tensor | None = None) -> Tensor:
        """Restored latents. Float32 also under autocast, as prepared ones are, so that a decoder of any precision is
        measured on such latents as it was trained on.

        Args:
            y: (B, C, h, w) latents of the degraded images.
            noise: standard normal, like `y`.
            keys: determine the noise that stochastic steps add.
            x0: the target's latents, in training: CCSR's chain then starts from them under full noise, and jumps with
                the same noise again, as in its official training of the decoder.
        """
        with torch.autocast(y.device.type, enabled=False):
            return self._sample(y.float(), noise.float(), keys, None if x0 is None else x0.float())

    def _sample(self, y: Tensor, noise: Tensor, keys: NoiseKeys, x0: Tensor | None) -> Tensor:
        batch = {"latent_degraded": y, "noise": noise, "noise_key": torch.tensor([list(key) for key in keys])}
        if self.settings.method != "ccsr":
            return self.method.sample(batch)
        ccsr, diffusion = self.settings.ccsr, self.method.diffusion
        fresh, jump = step_noise(keys, y), None
        if x0 is not None:
            jump, noise = noise, diffusion.add_noise(x0, full_timestep(diffusion.max_timestep - 1, y), noise)

        def added(timestep: int) -> Tensor:
            nonlocal jump
            if jump is None:
                return fresh(timestep)
            first, jump = jump, None
            return first

        with blamed_on(f"ccsr.t_max={ccsr.t_max}, ccsr.t_min={ccsr.t_min}, ccsr.steps={ccsr.steps}"):
            return sample_truncated(
                diffusion, self.method.guided(batch), y, noise, ccsr.steps, ccsr.t_max, ccsr.t_min, added
            )


def first_stage_settings(settings: TrialSettings) -> TrialSettings:
    """The first stage's own settings, on the trial's data.

    Raises:
        InputError: not a finished trial of `KINDS` that restores from latents, or CCSR needs timesteps that it was not
            trained for.
    """
    folder = first_stage_path(settings.first_stage.weights)
    name = f"first_stage.weights={settings.first_stage.weights}"
    found = finished_settings(folder, "", name)
    method = str(found["method"])
    if method not in KINDS:
        raise InputError(f"{name}: a trial of {method}; expected a finished trial of one of {', '.join(KINDS)}")
    if method == "controlnet_diffusion" and found.get("controlnet.condition") != "latent":
        raise InputError(f"{name}: its ControlNet sees images; expected one trained with controlnet.condition=latent")
    # The base is the trial's, wherever it lies: weights know by content which one they belong to.
    read = frozenset(METHODS[method].reads) - {"base"}
    own = {key: value for key, value in found.items() if key.partition(".")[0] in read}
    prompts = settings.base.prompts or found.get("base.prompts", "")
    changed = {
        "method": method,
        "checkpoint": str(folder),
        "base.prompts": prompts,
        "base.padded_prompt": found.get("base.padded_prompt", False),
    }
    first = override(settings, own | WHEN_RESTORING | changed)
    if settings.method == "ccsr":
        check_asked(found, flatten(first) | {"ccsr.t_max": settings.ccsr.t_max}, name)
    return first
