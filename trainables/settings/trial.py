"""All settings of a trial, and the checks between its sections."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.settings.checks import require, require_all
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
from trainables.settings.gan import DiscriminatorSettings, PerceptualSettings, Pix2PixSettings
from trainables.settings.methods import METHODS
from trainables.settings.metrics import MetricSettings
from trainables.settings.one_step import OneStepSettings
from trainables.settings.pairs import PairSettings
from trainables.settings.resshift import (
    NetworkSettings,
    ResShiftLossSettings,
    ResShiftSettings,
    SinSRSettings,
    TeacherSettings,
)
from trainables.settings.setting import section, setting
from trainables.settings.sources import SHIPPED, AutoencoderSettings, BaseSettings, DataSettings
from trainables.settings.training import TrainingSettings


@dataclass(frozen=True)
class TrialSettings:
    """All settings of a trial. `trainables.settings.methods` lists the sections that each method reads.

    Attributes:
        method: the method to train, a name of `trainables.settings.methods`.
        checkpoint: initial weights: the folder of a finished trial of this method, "shipped", a public checkpoint of it
            (docs/weights.md), or empty.
    """

    method: str = "sinsr"
    checkpoint: str = setting("", path="weights", builtin=(SHIPPED,), flag="--checkpoint")
    data: DataSettings = section(DataSettings, shared=True)
    pairs: PairSettings = section(PairSettings)
    autoencoder: AutoencoderSettings = section(AutoencoderSettings)
    network: NetworkSettings = section(NetworkSettings)
    resshift: ResShiftSettings = section(ResShiftSettings)
    resshift_loss: ResShiftLossSettings = section(ResShiftLossSettings, training_only=True)
    teacher: TeacherSettings = section(TeacherSettings)
    sinsr: SinSRSettings = section(SinSRSettings, training_only=True)
    base: BaseSettings = section(BaseSettings)
    diffusion: DiffusionSettings = section(DiffusionSettings)
    conv_in: ConvInSettings = section(ConvInSettings)
    lora: LoRASettings = section(LoRASettings)
    controlnet: ControlNetSettings = section(ControlNetSettings)
    stablesr: StableSRSettings = section(StableSRSettings)
    one_step: OneStepSettings = section(OneStepSettings)
    pixel: PixelSettings = section(PixelSettings)
    first_stage: FirstStageSettings = section(FirstStageSettings)
    cfw: CFWSettings = section(CFWSettings)
    ccsr: CCSRSettings = section(CCSRSettings, unless={"diffusion.objective": "uniform"})
    pix2pix: Pix2PixSettings = section(Pix2PixSettings)
    discriminator: DiscriminatorSettings = section(DiscriminatorSettings, training_only=True, adversarial=True)
    perceptual: PerceptualSettings = section(PerceptualSettings, training_only=True)
    training: TrainingSettings = section(TrainingSettings)
    metrics: MetricSettings = section(MetricSettings)

    def __post_init__(self) -> None:
        require(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        require(
            self.training.max_steps > 0 or bool(self.checkpoint),
            "training.max_steps",
            self.training.max_steps,
            "1 or more, or 0 with a finished trial to validate: --checkpoint FOLDER",
        )
        reads = METHODS[self.method].sections
        if "network" in reads:
            self._check_swin_unet()
        if "pixel" in reads:
            self._check_timesteps("pixel.train_timesteps", self.pixel.train_timesteps)
        if "diffusion" in reads and self.diffusion.objective == "ccsr":
            require(self.ccsr.t_max < 1, "ccsr.t_max", self.ccsr.t_max, "below 1 with diffusion.objective=ccsr")

    def _check_swin_unet(self) -> None:
        latent = self.pairs.image_size // self.autoencoder.factor
        require_all(
            (
                self.network.image_size == latent,
                "network.image_size",
                self.network.image_size,
                f"{latent}, the latent size of pairs.image_size={self.pairs.image_size}",
            ),
            (
                self.pairs.scale == self.autoencoder.factor,
                "pairs.scale",
                self.pairs.scale,
                f"{self.autoencoder.factor}: ResShift conditions on the degraded image at latent size",
            ),
        )

    def _check_timesteps(self, name: str, steps: int) -> None:
        accepted = f"1 to {name}={steps}"
        require(self.diffusion.max_timestep <= steps, "diffusion.max_timestep", self.diffusion.max_timestep, accepted)
