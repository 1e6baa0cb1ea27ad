"""What no hyperparameter changes is computed once per sweep, in stages: which there are, and what determines each.

Each stage is its own store keyed by all that determined it, so that a change remakes only what follows it:

    pairs (photographs, crops, degradation) -> latents (autoencoder) -> targets (ResShift teacher, noise draws)
                                                                     -> restored (finished first stage, noise draws)

All stages of a split are cut into shards at the same rows, so that a shard needs only the shards of its number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trainables.data.stages.stage import LATENTS_VERSION, STAGE_OF, Stage
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.shard_format import Column, rows_per_shard, store_name
from trainables.images.sources.photographs import Split
from trainables.images.sources.source import is_paired, source_fingerprint
from trainables.methods.shared.first_stage import first_stage_key
from trainables.pretrained.autoencoders import latent_shape
from trainables.pretrained.identity import autoencoder_fingerprint, weights_fingerprint
from trainables.pretrained.shipped import teacher_path
from trainables.settings import TrialSettings
from trainables.settings.methods import METHODS
from trainables.settings.pairs import PAIRS_VERSION


def plan(settings: TrialSettings, root: Path | str, columns: Collection[str], source: str = "") -> list[Stage]:
    """The stages that a batch of `columns` and the validation need, in order. Reads weights and photographs only to
    source_fingerprint them; makes nothing.

    Args:
        root: of the stores, a local folder or a URI.
        source: the source_fingerprint of `settings.data.source` where it is known already.
    """
    needed = {STAGE_OF[column] for column in columns if column in STAGE_OF}
    latent = METHODS[settings.method].latents != ""
    source = source or source_fingerprint(settings.data.source)
    stages = []
    # What trains nothing reads no training batch.
    splits: tuple[Split, ...] = ("train", "validation") if settings.training.max_steps else ("validation",)
    for split in splits:
        keys: dict[str, dict[str, Any]] = {"pairs": _pairs_key(settings, split, source)}
        if latent and (split == "validation" or needed & {"latents", "targets", "restored"}):
            keys["latents"] = {
                **keys["pairs"],
                "latents": LATENTS_VERSION,
                "autoencoder": autoencoder_fingerprint(settings),
            }
        if split == "train" and "targets" in needed:
            keys["targets"] = {**keys["latents"], **_targets_key(settings)}
        if split == "train" and "restored" in needed:
            keys["restored"] = {**keys["latents"], **first_stage_key(settings)}
        rows = settings.pairs.train_pairs if split == "train" else settings.pairs.validation_pairs
        shard_rows = rows_per_shard(rows, sum(c.bytes_per_row for c in _columns(settings, "pairs", split).values()))
        for name, key in keys.items():
            folder = StoreFolder(str(root), store_name(f"{name}-{split}", key))
            stages.append(Stage(name, split, key, folder, rows, shard_rows, _columns(settings, name, split)))
    return stages


def _pairs_key(settings: TrialSettings, split: Split, source: str) -> dict[str, Any]:
    """Training pairs depend on their size, number and seed, validation pairs on theirs alone."""
    pairs = dataclasses.asdict(settings.pairs)
    own = (
        ("image_size", "train_pairs", "colour_swap_prob")
        if split == "train"
        else ("validation_size", "validation_pairs")
    )
    key = {name: pairs[name] for name in (*own, "scale")}
    if not is_paired(settings.data.source):
        made_by = "print" if settings.pairs.simulator == "print_to_camera" else "degradation"
        key |= {made_by: pairs[made_by]}
    key |= {"version": PAIRS_VERSION, "source": source, "split": split}
    return key | ({"seed": settings.data.seed} if split == "train" else {})


def _targets_key(settings: TrialSettings) -> dict[str, Any]:
    return {
        "teacher": weights_fingerprint(teacher_path(settings.teacher.weights)),
        "network": dataclasses.asdict(settings.network),
        "diffusion": dataclasses.asdict(settings.resshift),
        "draws": settings.sinsr.draws,
    }


def _columns(settings: TrialSettings, stage: str, split: Split) -> dict[str, Column]:
    pairs = settings.pairs
    size = pairs.image_size if split == "train" else pairs.validation_size
    if stage == "pairs":
        degraded = size // pairs.scale
        return {"target": Column("uint8", (3, size, size)), "degraded": Column("uint8", (3, degraded, degraded))}
    latent = latent_shape(settings).of(size)
    if stage == "latents":
        return {"latent": Column("float16", latent), "latent_degraded": Column("float16", latent)}
    if stage == "restored":
        return {"restored": Column("float16", (settings.first_stage.draws, *latent))}
    draws = (settings.sinsr.draws, *latent)
    return {"noise": Column("float16", draws), "taught": Column("float16", draws)}
