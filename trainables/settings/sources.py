"""Settings of the photographs and of the pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.common.errors import InputError
from trainables.common.paths import refuse_secrets
from trainables.settings.checks import LARGEST_SEED, SHARE, require, require_within
from trainables.settings.setting import Limits, setting

SAMPLE, SHIPPED = "sample", "shipped"
# A decoder has the prompts of its first stage.
_PROMPTED = ("latent_diffusion", "controlnet_diffusion", "stablesr", "one_step")


@dataclass(frozen=True)
class DataSettings:
    """The photographs, and how prepared data is checked and read.

    Attributes:
        source: "sample" (17 photographs that need no download); a folder of photographs, or of pairs (`input/` and
            `target/`, `LQ/` and `GT/`, ...); a .txt of paths; a .parquet, or a folder of them; or the URI of
            one of these, such as `s3://bucket/photographs`. See docs/data.md.
        input: folder of the degraded photographs of pairs, whose targets have the same names in the folder `source`;
            empty if `source` holds both, or photographs to simulate them from.
        seed: seed of the crops and degradations of the training pairs; equal for all trials of a sweep.
        validation_share: share of the photographs on which the search is steered, above 0 to 0.5.
        test_share: share of the photographs on which only the confirmation is measured, 0 to 0.5; 0 for none.
            Photographs are drawn by the hash of their names, at least one for validation and three for test; see
            docs/data.md. Both shares have no effect on the sample, whose splits are fixed.
        max_rejected: largest accepted share of unusable images in a split, 0 to 1; beyond it preparation stops.
        verify: when a sweep starts, compare local prepared stores of up to 1 GB with their hashes, not only their sizes
            and schema. `python -m trainables.data verify` compares larger ones; downloads from a bucket are always
            compared.
        window_shards: for stores larger than a machine's disk. 0 draws the training rows of an epoch from the whole
            store; n draws them from n shards at a time, in a random order of shards, so that a trial keeps at most
            2 n shards of a bucket on its disk.
    """

    source: str = setting(SAMPLE, path="images", builtin=(SAMPLE,), flag="--data")
    input: str = setting("", path="images", flag="--data-input")
    seed: int = setting(0, within=(0, LARGEST_SEED))
    validation_share: float = setting(0.1, within=Limits(0, 0.5, "above 0, to 0.5", open_low=True))
    test_share: float = setting(0.1, within=(0, 0.5))
    max_rejected: float = setting(0.01, within=SHARE)
    verify: bool = True
    window_shards: int = setting(0, within=(0, 1_000_000))

    def __post_init__(self) -> None:
        for name in ("source", "input"):
            refuse_secrets(f"data.{name}", getattr(self, name))
        targets = not self.input or self.source not in ("", SAMPLE)
        require(targets, "data.input", self.input, "data.source=FOLDER too, with the targets of these images")
        require_within("data", self)


@dataclass(frozen=True)
class AutoencoderSettings:
    """The VQ-f4 autoencoder of ResShift and SinSR.

    Attributes:
        weights: "shipped", a .safetensors of this project, a diffusers folder, or the official .pth.
    """

    weights: str = setting(SHIPPED, path="weights", builtin=(SHIPPED,), restores="frozen part")

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel, along one side."""
        return 4


@dataclass(frozen=True)
class BaseSettings:
    """The Stable Diffusion parts from which latent methods start: UNet, KL autoencoder, noise schedule and the
    embedding of the empty prompt.

    Attributes:
        weights: "shipped", a local folder in diffusers layout (Stable Diffusion's or Marigold's), or a hub id.
        revision: commit, tag or branch of a hub id; empty for the newest.
        prompts: a .safetensors with the embeddings of a positive and a negative prompt, written by
            `python -m trainables.prompts`; empty for the base's empty prompt alone. See docs/prompts.md.
        padded_prompt: pad the empty prompt to the tokenizer's length (77 tokens), as StableSR, CCSR, OSEDiff and
            PiSA-SR do; without it, it has the start and end tokens alone, as in Marigold. For a base whose text
            encoder computes it; a base's file of it and `base.prompts` stay as they are.
        prompt_dropout: share of training samples, drawn in every step, that get the empty prompt in place of the
            positive one; PiSA-SR: 0.5.
    """

    weights: str = setting(SHIPPED, path="weights", builtin=(SHIPPED,), hub=True, restores="frozen part")
    revision: str = setting("", restores="frozen part")
    prompts: str = setting("", path="weights", restores="frozen part")
    padded_prompt: bool = setting(False, methods=_PROMPTED)
    prompt_dropout: float = setting(
        0.0,
        within=SHARE,
        training_only=True,
        methods=_PROMPTED,
    )

    def __post_init__(self) -> None:
        require_within("base", self)


def check_sources(data: str, data_input: str, data_target: str) -> None:
    """Checks the flags `--data`, `--data-input` and `--data-target`.

    Raises:
        InputError: one folder of pairs without the other, or `--data` with them.
    """
    folders = {"--data-input": data_input, "--data-target": data_target}
    given = [flag for flag, folder in folders.items() if folder]
    for flag in folders:
        if given and flag not in given:
            raise InputError(f"{given[0]} {folders[given[0]]}: needs {flag} DIR, the other images of the pairs")
    if given and data:
        raise InputError(f"--data {data}: --data-input and --data-target name the images; give one or the other")


def given_sources(data: str, data_input: str, data_target: str) -> dict[str, object]:
    """Dotted name -> value, of the settings that these flags change."""
    if data_input:
        return {"data.source": data_target, "data.input": data_input}
    return {"data.source": data, "data.input": ""} if data else {}
