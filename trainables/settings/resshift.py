"""Settings of ResShift and of SinSR, its one-step student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.settings.checks import require, require_weight, require_within
from trainables.settings.sources import SHIPPED


@dataclass(frozen=True)
class NetworkSettings:
    """The Swin-UNet of ResShift and SinSR, by the names of its official configuration. Defaults are the official size.

    `image_size` is in latent pixels: the size the network is trained at. Every level but the last halves it, and those
    of a size in `attention_resolutions` have self-attention, as the bottleneck always has.
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
        levels = len(self.channel_mult)
        require(1 <= levels <= 8, "network.channel_mult", self.channel_mult, "1 to 8 levels")
        require_within(
            "network",
            self,
            image_size=(1, 4096),
            model_channels=(32, 1024),
            channel_mult=(1, 16),
            num_res_blocks=(1, 16),
            swin_depth=(1, 32),
            swin_embed_dim=(32, 2048),
            num_head_channels=(1, 2048),
            window_size=(1, 64),
            mlp_ratio=(1 / 32, 64),
        )
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
            f"sizes that a level has with network.image_size={self.image_size}: {', '.join(map(str, sizes))}",
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
        # So that no two steps of the schedule round to the same noise.
        limits = {"steps": (2, 1000), "power": (0.01, 5), "kappa": (0.001, 1000), "min_noise_level": (1e-6, 1)}
        require_within("resshift", self, **limits)
        # At least three times what the schedule starts with, whatever min_noise_level is.
        require(0.1 <= self.etas_end < 1, "resshift.etas_end", self.etas_end, "a number in [0.1, 1)")


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
        require_within("sinsr", self, draws=(1, 1000))

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("distillation", "inversion", "ground_truth")}
