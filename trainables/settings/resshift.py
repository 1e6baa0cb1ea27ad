"""Settings of ResShift and of SinSR, its one-step student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import require, require_weight
from trainables.settings.sources import SHIPPED


@dataclass(frozen=True)
class NetworkSettings:
    """The Swin-UNet of ResShift and SinSR, by the names of its official configuration. Defaults are the official size.

    `image_size` is in latent pixels: the size the network is trained at.
    """

    image_size: int = 64
    model_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)
    swin_depth: int = 2
    swin_embed_dim: int = 192
    num_head_channels: int = 32
    window_size: int = 8
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        require(self.model_channels % 32 == 0, "network.model_channels", self.model_channels, "a multiple of 32")
        require(
            len(self.channel_mult) == len(self.num_res_blocks),
            "network.num_res_blocks",
            self.num_res_blocks,
            f"one number for each of the {len(self.channel_mult)} levels of network.channel_mult",
        )


@dataclass(frozen=True)
class ResShiftSettings:
    """The residual-shifting schedule (Yue et al. 2023); defaults as published for x4 super-resolution."""

    steps: int = 15
    power: float = 0.3
    min_noise_level: float = 0.04
    kappa: float = 2.0
    etas_end: float = 0.99

    def __post_init__(self) -> None:
        require(self.steps >= 2, "resshift.steps", self.steps, "2 or more")
        require(self.power > 0, "resshift.power", self.power, "a number above 0")
        require(self.kappa > 0, "resshift.kappa", self.kappa, "a number above 0")
        # At least three times what the schedule starts with, whatever min_noise_level is.
        require(0.1 <= self.etas_end < 1, "resshift.etas_end", self.etas_end, "a number in [0.1, 1)")
        require(0 < self.min_noise_level < 1, "resshift.min_noise_level", self.min_noise_level, "a number in (0, 1)")


@dataclass(frozen=True)
class TeacherSettings:
    """The ResShift teacher: "shipped", a .safetensors of ours or the official .pth, of the shape `network` says."""

    weights: str = SHIPPED


@dataclass(frozen=True)
class SinSRSettings:
    """The one-step student (Wang et al. 2024).

    Attributes:
        distillation, inversion, ground_truth: the weights of the three terms; the paper's are 1, 1, 1.
        teaching: "prepared" reads the teacher's targets from the store, made once for all trials; "online" runs
            autoencoder and teacher in every step, as the official code does.
        draws: noise draws for each pair. Prepared targets repeat after this many epochs over the pairs.
    """

    distillation: float = 1.0
    inversion: float = 1.0
    ground_truth: float = 1.0
    teaching: Literal["prepared", "online"] = "prepared"
    draws: int = 4

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            require_weight(f"sinsr.{name}", weight)
        require(
            any(self.weights.values()),
            "sinsr.distillation:inversion:ground_truth",
            ":".join(f"{weight:g}" for weight in self.weights.values()),
            "a ratio with at least one weight above 0",
        )
        require(self.draws >= 1, "sinsr.draws", self.draws, "1 or more")

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("distillation", "inversion", "ground_truth")}
