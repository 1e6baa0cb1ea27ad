"""Settings of ResShift and of SinSR, its one-step student."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from trainables.settings.checks import WEIGHT, require, require_within
from trainables.settings.setting import Limits, setting
from trainables.settings.sources import SHIPPED


@dataclass(frozen=True)
class NetworkSettings:
    """The Swin-UNet of ResShift and SinSR. Names and default values are those of the official configuration.

    Attributes:
        image_size: side of the latents in training, latent pixels. Every level but the last halves it.
        latent_channels: channels of the autoencoder's latents.
        model_channels: width of the first level, a multiple of 32.
        channel_mult: width of each level, in multiples of `model_channels`.
        num_res_blocks: residual blocks of each level.
        attention_resolutions: sizes of the levels with self-attention, latent pixels; the bottleneck always has it.
        swin_depth: transformer blocks of each self-attention.
        swin_embed_dim: width of the tokens.
        num_head_channels: width of each attention head.
        window_size: side of the attention windows, latent pixels.
        mlp_ratio: width of the transformer's hidden layers, in multiples of `swin_embed_dim`.
    """

    image_size: int = setting(64, within=(1, 4096))
    latent_channels: int = setting(3, within=(1, 64))
    model_channels: int = setting(160, within=(32, 1024))
    channel_mult: tuple[int, ...] = setting((1, 2, 2, 4), within=(1, 16))
    num_res_blocks: tuple[int, ...] = setting((2, 2, 2, 2), within=(1, 16))
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)
    swin_depth: int = setting(2, within=(1, 32))
    swin_embed_dim: int = setting(192, within=(32, 2048))
    num_head_channels: int = setting(32, within=(1, 2048))
    window_size: int = setting(8, within=(1, 64))
    mlp_ratio: float = setting(4.0, within=(1 / 32, 64))

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        require(1 <= levels <= 8, "network.channel_mult", self.channel_mult, "1 to 8 levels")
        require_within("network", self)
        require(self.model_channels % 32 == 0, "network.model_channels", self.model_channels, "a multiple of 32")
        require(
            len(self.num_res_blocks) == levels,
            "network.num_res_blocks",
            self.num_res_blocks,
            f"one number for each of the {levels} levels of network.channel_mult",
        )
        sizes = [self.image_size // 2**level for level in range(levels)]
        require(
            set(self.attention_resolutions) <= set(sizes),
            "network.attention_resolutions",
            self.attention_resolutions,
            f"sizes of levels with network.image_size={self.image_size}: {', '.join(map(str, sizes))}",
        )


@dataclass(frozen=True)
class ResShiftSettings:
    """The residual-shifting schedule (Yue et al. 2023). Defaults are those published for x4 super-resolution. Within
    the accepted ranges no two steps round to the same noise.

    Attributes:
        steps: steps of the schedule and of sampling.
        power: p of the paper; a larger value keeps the noise low for longer.
        min_noise_level: upper bound of kappa * sqrt(eta_1), the noise of the first step.
        kappa: noise level relative to the residual.
        etas_end: sqrt(eta_T) of the paper; the name is that of the official configuration.
        bounded: bound sqrt(eta_1) by 0.032 too, as SinSR's code does; the journal version of ResShift does not.
        sampler: "ancestral" adds fresh noise in every step but the last, as ResShift does; "ddim" is the deterministic
            sampler with which SinSR's teacher makes its targets.
    """

    steps: int = setting(15, within=(2, 1000))
    power: float = setting(0.3, within=(0.01, 5))
    min_noise_level: float = setting(0.04, within=(1e-6, 1))
    kappa: float = setting(2.0, within=(0.001, 1000))
    # At least three times the schedule's first value, for every min_noise_level; without its bound, see below.
    etas_end: float = setting(0.99, within=Limits(0.1, 1, "a number in [0.1, 1)", open_high=True))
    bounded: bool = True
    sampler: Literal["ddim", "ancestral"] = setting("ddim", methods=("resshift",), restores="sampling")

    @property
    def schedule(self) -> dict[str, Any]:
        """The arguments of `ResShiftDiffusion`: all settings but the sampler, which does not change the weights."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "sampler"}

    def __post_init__(self) -> None:
        require_within("resshift", self)
        start = min(self.min_noise_level / self.kappa, self.min_noise_level)
        accepted = (
            f"at most {self.etas_end / 3 * max(1, self.kappa):g} with resshift.kappa={self.kappa:g}, "
            f"resshift.etas_end={self.etas_end:g} and resshift.bounded=false"
        )
        require(self.bounded or 3 * start <= self.etas_end, "resshift.min_noise_level", self.min_noise_level, accepted)


@dataclass(frozen=True)
class ResShiftLossSettings:
    """The loss of ResShift's training. The journal version adds LPIPS on the decoded estimate of x_0.

    Attributes:
        mse, lpips: weights of the squared error of the latent and of LPIPS; published: 1 and 0, journal 1 and 1.
        network: network of LPIPS, as for `perceptual.network`; published: "lpips_vgg".
    """

    mse: float = setting(1.0, within=WEIGHT)
    lpips: float = setting(0.0, within=WEIGHT)
    network: Literal["lpips", "lpips_vgg", "st_lpips"] = setting("st_lpips", unless={"resshift_loss.lpips": 0.0})

    def __post_init__(self) -> None:
        require_within("resshift_loss", self)


@dataclass(frozen=True)
class TeacherSettings:
    """The ResShift teacher. `network` is its shape.

    Attributes:
        weights: "shipped", a .safetensors of this project, or the official .pth.
    """

    weights: str = setting(SHIPPED, path="weights", builtin=(SHIPPED,), restores="frozen part")


@dataclass(frozen=True)
class SinSRSettings:
    """The one-step student (Wang et al. 2024).

    Attributes:
        distillation, inversion, ground_truth: weights of the three terms; 1, 1, 1 in the paper. Without the first two
            the teacher makes no targets.
        teaching: "prepared" reads the teacher's targets from the store, made once for all trials; "online" runs
            autoencoder and teacher in every step, as the official code does.
        draws: noise draws per pair; prepared targets repeat after this many epochs.
    """

    distillation: float = setting(1.0, within=WEIGHT)
    inversion: float = setting(1.0, within=WEIGHT)
    ground_truth: float = setting(1.0, within=WEIGHT)
    teaching: Literal["prepared", "online"] = setting("prepared", when_restoring="prepared")
    draws: int = setting(
        4,
        within=(1, 1000),
        unless=({"sinsr.teaching": "online"}, {"sinsr.distillation": 0, "sinsr.inversion": 0}),
    )

    def __post_init__(self) -> None:
        require_within("sinsr", self)
        require(
            any(self.weights.values()),
            "sinsr.distillation:inversion:ground_truth",
            ":".join(f"{weight:g}" for weight in self.weights.values()),
            "a ratio with at least one weight above 0",
        )

    @property
    def teaches(self) -> bool:
        """Whether a term reads the teacher's targets."""
        return self.distillation + self.inversion > 0

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("distillation", "inversion", "ground_truth")}
