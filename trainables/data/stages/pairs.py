"""Pairs of target and degraded image, cropped from photographs: the first stage, made without a network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from trainables.data.stages.stage import Stage
from trainables.data.stores.shard_format import Column, encode_shard
from trainables.images.pairs import Pair, Pairs
from trainables.images.sources.photographs import UnusableImage
from trainables.images.sources.source import Source
from trainables.settings import TrialSettings
from trainables.settings.pairs import PAIRS_VERSION, Split

COLUMNS = ("target", "degraded")
_KERNELS_BEFORE = {"smallest_blur_kernel": 3, "smallest_blur_kernel2": 3}
_SHARES_BEFORE = {"validation_share": 0.1, "test_share": 0.0}


def pairs_key(settings: TrialSettings, split: Split, source: Source, variant: int = 0) -> dict[str, Any]:
    """The key of pairs: training pairs depend on their size, number and seed, others on size and number.

    The key of a variant does not depend on how many there are, and that of the first one says nothing of variants.

    Args:
        source: the photographs, opened.
        variant: of the training pairs, from 0.
    """
    pairs = dataclasses.asdict(settings.pairs)
    key: dict[str, Any] = {"scale": settings.pairs.scale}
    if split == "train":
        key |= {name: pairs[name] for name in ("image_size", "train_pairs", "colour_swap_prob")}
        if variant:
            key |= {"variant": variant}
            key |= {"flips": settings.pairs.flips} if settings.pairs.flips != "none" else {}
    else:
        key |= {f"{split}_size": settings.pairs.size_of(split), f"{split}_pairs": settings.pairs.count_of(split)}
    # Shares decide which photographs belong to a split. Those of version 0.1, whose keys had none, are left out.
    shares = {"validation_share": settings.data.validation_share, "test_share": settings.data.test_share}
    key |= {name: share for name, share in shares.items() if share != _SHARES_BEFORE[name]}
    if not source.paired:
        # Left out for the crops of version 0.1, whose keys had none. Random ones are for training alone.
        before = ("detailed",) if split == "train" else ("detailed", "random")
        key |= {"crop": settings.pairs.crop} if settings.pairs.crop not in before else {}
        key |= {"sharpened": True} if settings.pairs.sharpened and split == "train" else {}
    if settings.pairs.degrades_online(split):
        key |= {"degraded": "online"}
    elif not source.paired:
        made_by = "print" if settings.pairs.simulator == "print_to_camera" else "degradation"
        # Smallest kernels are left out for those of stores whose keys had none.
        read = {name: value for name, value in pairs[made_by].items() if value != _KERNELS_BEFORE.get(name)}
        key |= {made_by: read}
    key |= {"version": PAIRS_VERSION, "source": source.fingerprint, "split": split}
    return key | ({"seed": settings.data.seed} if split == "train" else {})


def pairs_columns(settings: TrialSettings, size: int) -> dict[str, Column]:
    """uint8 images (3, H, W) of `size` pixels a side, and degraded ones `pairs.scale` times smaller."""
    degraded = size // settings.pairs.scale
    return {"target": Column("uint8", (3, size, size)), "degraded": Column("uint8", (3, degraded, degraded))}


def stored_columns(settings: TrialSettings, split: Split) -> dict[str, Column]:
    """The columns of a split's store of pairs."""
    columns = pairs_columns(settings, settings.pairs.size_of(split))
    return {"target": columns["target"]} if settings.pairs.degrades_online(split) else columns


def encode_pairs(stage: Stage, number: int, pairs: Pairs) -> pa.Buffer:
    """Shard `number` of a stage of pairs. If a photograph is found broken, all its rows in the shard are left out."""
    made, rejected = list[Pair](), dict[str, str]()
    for row in stage.rows_of(number):
        name = pairs.photograph_of(row)
        if name not in rejected:
            try:
                made.append(pairs[row])
            except UnusableImage as error:
                rejected[name] = str(error)
    made = [pair for pair in made if pair.photograph not in rejected]
    values = {
        name: np.stack([getattr(pair, name).transpose(2, 0, 1) for pair in made])
        if made
        else np.empty((0, *column.shape), column.dtype)
        for name, column in stage.columns.items()
    }
    return encode_shard(stage.columns, values, [pair.name for pair in made], rejected)
