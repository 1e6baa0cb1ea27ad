"""Where photographs and pretrained weights come from."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE, SHIPPED = "sample", "shipped"


@dataclass(frozen=True)
class DataSettings:
    """Where photographs come from.

    Attributes:
        source: "sample" (the photographs in scikit-image's wheel), a folder of photographs, or a folder of pairs
            (`input/` and `target/`, or `captured/` and `original/`).
        seed: chooses crops and degradations of the training pairs; equal for all trials of a sweep.
        verify: compare a prepared store's content hash before it is used, not only its size and schema.
    """

    source: str = SAMPLE
    seed: int = 0
    verify: bool = True


@dataclass(frozen=True)
class AutoencoderSettings:
    """The VQ-f4 autoencoder of ResShift and SinSR: "shipped", a .safetensors of ours, a diffusers folder, or the
    official .pth."""

    weights: str = SHIPPED

    @property
    def factor(self) -> int:
        """Image pixels for one latent pixel, along one side."""
        return 4


@dataclass(frozen=True)
class BaseSettings:
    """The Stable Diffusion parts that the latent methods start from: UNet, KL autoencoder, noise schedule and the
    conditioning of the empty prompt.

    Attributes:
        weights: "shipped", a local folder in diffusers layout (Stable Diffusion's or Marigold's), or a hub id.
        revision: commit, tag or branch of a hub id; empty for its newest.
    """

    weights: str = SHIPPED
    revision: str = ""
