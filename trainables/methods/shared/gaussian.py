"""The base class of Gaussian diffusion methods: their loss terms, and their sampling.

They differ in their space (latents or pixels) and in how the network gets the degraded image.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.common.errors import InputError, blamed_on
from trainables.diffusion.ccsr import ccsr_jump_terms, jump_timestep, sample_truncated, truncated_timesteps
from trainables.diffusion.gaussian import Denoise, GaussianDiffusion
from trainables.diffusion.noise import multi_resolution_noise, step_noise
from trainables.diffusion.resshift import per_sample_mse
from trainables.methods.method import Batch, LossTerm, Method, Phase
from trainables.methods.shared.perceptual_loss import PerceptualLoss
from trainables.networks.cfw import fidelity_blend
from trainables.settings import TrialSettings


class GaussianMethod(Method):
    """A conditional diffusion model.

    Terms: `noise` (or `velocity`), the mean squared error of the network's output; `reconstruction`, the L1 distance of
    the x_0 estimate; `perceptual`, on the decoded estimate, in some steps. For the prediction type `sample` the first
    is left out, because it would repeat the second. For `epsilon` the two are coupled too, by a factor that depends
    only on the timestep; both are logged to show it.

    CCSR's objective adds a second phase with three terms of the jump from full noise, `jump_*`.

    Attributes:
        diffusion: the schedule of training, and its sampler.
        sampling: the schedule up to the timestep where sampling starts.
        steps_offset: of "leading" timesteps.
    """

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.diffusion, self.steps_offset = self.schedule(settings), self.leading_offset(settings)
        self.sampling = self.sampling_schedule(settings)
        self.perceptual = PerceptualLoss(settings.perceptual, device)

    @classmethod
    @abstractmethod
    def schedule(cls, settings: TrialSettings) -> GaussianDiffusion:
        """The noise schedule and its sampler.

        Raises:
            InputError: settings that do not fit it.
        """

    @classmethod
    def sampling_schedule(cls, settings: TrialSettings) -> GaussianDiffusion:
        """The schedule, cut at `diffusion.start_timestep`.

        Raises:
            InputError: settings that do not fit it.
        """
        chain, start = cls.schedule(settings), settings.diffusion.start_timestep
        return chain.cut(start) if start else chain

    @classmethod
    def leading_offset(cls, settings: TrialSettings) -> int:
        """The offset added to "leading" timesteps."""
        return 0

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        chain, chosen, t_max = cls.schedule(settings), settings.diffusion, settings.ccsr.t_max
        terms = {"perceptual.weight": settings.perceptual.weight}
        if chain.prediction_type != "sample":
            terms["diffusion.noise_weight"] = chosen.noise_weight
        if settings.training.max_steps and not (chosen.reconstruction_weight or any(terms.values())):
            raise InputError(
                f"diffusion.reconstruction_weight={chosen.reconstruction_weight}: expected above 0, or else "
                f"{' or '.join(terms)}: no term trains the network, which predicts {chain.prediction_type}"
            )
        if chosen.objective == "ccsr":
            with blamed_on(f"diffusion.inference_steps={chosen.inference_steps}, ccsr.t_max={t_max}"):
                jump_timestep(chain, t_max)
                truncated_timesteps(chain, chosen.inference_steps, t_max, 0.0)
        else:
            with blamed_on(f"diffusion.inference_steps={chosen.inference_steps}, diffusion.spacing={chosen.spacing}"):
                cut = cls.sampling_schedule(settings)
                cut.timesteps(chosen.inference_steps, chosen.spacing, cls.leading_offset(settings))

    @abstractmethod
    def denoiser(self, batch: Batch) -> Denoise:
        """The network with the batch's conditioning."""

    def guided(self, batch: Batch) -> Denoise:
        """The network as sampling uses it."""
        return self.denoiser(batch)

    @abstractmethod
    def clean(self, batch: Batch) -> Tensor:
        """x_0 of a training batch."""

    @abstractmethod
    def degraded(self, batch: Batch) -> Tensor:
        """The degraded images in the space of x_0."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """x_0 as images, about [-1, 1]."""

    @property
    def phases(self) -> tuple[Phase, ...]:  # type: ignore[override]  # of the class where it is always the same
        (network,) = self.networks
        names = ("denoiser", "jump") if self.settings.diffusion.objective == "ccsr" else ("denoiser",)
        return tuple(Phase(name, (network,)) for name in names)

    @staticmethod
    def noises(settings: TrialSettings) -> set[str]:
        """The columns of noise that the objective reads."""
        jump = {"jump_noise"} if settings.diffusion.objective == "ccsr" else set()
        return {"fresh_noise", "uniform"} | jump | ({"coarse_noise"} if settings.diffusion.multi_resolution else set())

    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        diffusion, settings = self.diffusion, self.settings.diffusion
        x0, noise = self.clean(batch), batch["fresh_noise"]
        if phase.name == "jump":
            t_max, denoise = self.settings.ccsr.t_max, self.denoiser(batch)
            errors = ccsr_jump_terms(diffusion, denoise, x0, noise, batch["jump_noise"], t_max)
            return {f"jump_{name}": LossTerm(error.mean(), 1.0) for name, error in errors.items()}
        end = diffusion.max_timestep
        if settings.objective == "ccsr":
            end = jump_timestep(diffusion, self.settings.ccsr.t_max)
        t = (batch["uniform"] * end).long()
        if strength := settings.multi_resolution:
            share = t / diffusion.train_timesteps if settings.annealed else torch.ones_like(t, dtype=torch.float32)
            noise = multi_resolution_noise(noise, batch["coarse_noise"], strength * share)
        x_t = diffusion.add_noise(x0, t, noise)
        output = self.denoiser(batch)(x_t, t)
        estimate = diffusion.predict_x0(output, x_t, t)
        weights = diffusion.min_snr_weights(t, settings.min_snr) if settings.min_snr else None
        if diffusion.prediction_type == "sample" and weights is not None:
            reconstruction = (weights * (estimate - x0).abs().flatten(1).mean(dim=1)).mean()
        else:
            reconstruction = F.l1_loss(estimate, x0)
        terms = {"reconstruction": LossTerm(reconstruction, settings.reconstruction_weight)}
        if diffusion.prediction_type != "sample":
            name = "noise" if diffusion.prediction_type == "epsilon" else "velocity"
            errors_of_output = per_sample_mse(output, diffusion.target(x0, noise, t))
            weighted = errors_of_output if weights is None else weights * errors_of_output
            terms[name] = LossTerm(weighted.mean(), settings.noise_weight)
        if self.perceptual.due(step):
            terms["perceptual"] = self.perceptual(self.decode(estimate), batch["target"])
        return terms

    def restore(self, batch: Batch) -> Tensor:
        settings = self.settings.diffusion
        images = self.decode(self.sample(batch))
        if settings.fidelity_weight:
            images = fidelity_blend(images, self.decode(self.degraded(batch)), settings.fidelity_weight)
        return images * 0.5 + 0.5

    def sample(self, batch: Batch) -> Tensor:
        """x_0 of a validation batch, from its own noise.

        By `diffusion.sampler` from `diffusion.start_timestep`; or, if CCSR's objective left the timesteps above
        `ccsr.t_max` untrained, by its jump and stochastic steps.
        """
        settings, denoise = self.settings.diffusion, self.guided(batch)
        y, noise = self.degraded(batch), batch["noise"]
        steps, spacing, offset = settings.inference_steps, settings.spacing, self.steps_offset
        if settings.objective != "ccsr" and settings.sampler == "ddim":
            return self.sampling.sample_ddim(denoise, y, noise, steps, spacing, offset)
        fresh = step_noise(batch["noise_key"].tolist(), y)
        if settings.objective == "ccsr":
            return sample_truncated(self.diffusion, denoise, y, noise, steps, self.settings.ccsr.t_max, 0.0, fresh)
        return self.sampling.sample_ancestral(denoise, y, noise, steps, spacing, fresh, offset)
