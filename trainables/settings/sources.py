"""Where photographs and pretrained weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.common.paths import refuse_secrets
from trainables.settings.checks import LARGEST_SEED, SHARE, require_within
from trainables.settings.setting import setting

SAMPLE, SHIPPED = "sample", "shipped"


@dataclass(frozen=True)
class DataSettings:
    """Where photographs come from.

    Attributes:
        source: "sample" (the photographs in scikit-image's wheel); a folder of photographs, or of pairs (`input/` and
            `target/`, or `captured/` and `original/`); a .txt of paths; a .parquet, or a folder of them; or the URI of
            one of these, such as `s3://bucket/photographs`. See docs/data.md.
        seed: chooses crops and degradations of the training pairs; equal for all trials of a sweep.
        max_rejected: the share of a split's images that may be unusable; more of them stop the preparation.
        verify: compare the content of local prepared stores of up to 1 GB with their hashes when a sweep starts, not
            only their sizes and schema; `python -m trainables.data verify` does it for any, and what comes from a
            bucket is compared as it comes.
        window_shards: for a store that is larger than a machine's disk: 0 draws the training rows of an epoch from the
            whole store, n from n shards at a time, in a random order of shards, so that with a store in a bucket a
            trial needs no more than 2 n of them here.
    """

    source: str = setting(SAMPLE, path="images", builtin=(SAMPLE,), flag="--data")
    seed: int = setting(0, within=(0, LARGEST_SEED))
    max_rejected: float = setting(0.01, within=SHARE)
    verify: bool = True
    window_shards: int = setting(0, within=(0, 1_000_000))

    def __post_init__(self) -> None:
        refuse_secrets("data.source", self.source)
        require_within("data", self)


@dataclass(frozen=True)
class AutoencoderSettings:
    """The VQ-f4 autoencoder of ResShift and SinSR.

    Attributes:
        weights: "shipped", a .safetensors of ours, a diffusers folder, or the official .pth.
    """

    weights: str = setting(SHIPPED, path="weights", builtin=(SHIPPED,), restores="frozen part")

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

    weights: str = setting(SHIPPED, path="weights", builtin=(SHIPPED,), hub=True, restores="frozen part")
    revision: str = setting("", restores="frozen part")
