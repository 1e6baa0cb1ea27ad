"""The stages that a trial needs, and the key of each of them.

All stages of a split are cut into shards at the same rows, so that a shard needs only the shards with its number.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from trainables.data.augmentation import check_augmentation
from trainables.data.fresh_pairs import check_online
from trainables.data.stages.kinds import MAKERS, STAGE_OF
from trainables.data.stages.pairs import pairs_key, stored_columns
from trainables.data.stages.stage import Stage
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.shard_format import rows_per_shard, store_name
from trainables.images.sources.source import Source, open_source
from trainables.methods.shared.encoding import batch_columns
from trainables.settings import TrialSettings
from trainables.settings.methods import METHODS
from trainables.settings.pairs import Split


def needed_stages(
    settings: TrialSettings,
    root: Path | str,
    columns: Collection[str],
    source: Source | None = None,
    test: bool = False,
) -> list[Stage]:
    """The stages that a batch of `columns` and the validation need, in order.

    The first variant of the training pairs and the other splits come before the other variants.

    Reads weights and photographs only to fingerprint them; makes nothing.

    Args:
        root: of the stores, a local folder or a URI.
        source: `settings.data.source` if it is already open.
        test: whether trials are measured on the test pairs too.

    Raises:
        InputError: weights or photographs cannot be read, or a batch of `columns` cannot be degraded or augmented as
            the settings say.
    """
    source = source or open_source(settings.data.source, settings.data.input)
    check_online(settings, columns, source)
    check_augmentation(settings, columns)
    columns = batch_columns(settings, columns)
    # Trials without training steps read no training batch.
    trained: tuple[Split, ...] = ("train",) if settings.training.max_steps else ()
    splits: tuple[Split, ...] = (*trained, "validation", *(("test",) if test else ()))
    places: list[tuple[Split, int]] = [(split, 0) for split in splits]
    if trained:  # every other variant is a data set of its own, which is needed later
        places += [("train", variant) for variant in range(1, settings.pairs.variants)]
    return [stage for place in places for stage in _stages_of(*place, settings, str(root), columns, source)]


def _stages_of(
    split: Split, variant: int, settings: TrialSettings, root: str, columns: Collection[str], source: Source
) -> list[Stage]:
    pairs = settings.pairs
    training = split == "train"
    rows, size = pairs.count_of(split), pairs.size_of(split)
    wanted = {STAGE_OF[column] for column in columns if column in STAGE_OF} & MAKERS.keys() if training else {"latents"}
    keys: dict[str, dict[str, Any]] = {"pairs": pairs_key(settings, split, source, variant)}
    if METHODS[settings.method].latents and wanted:
        keys["latents"] = keys["pairs"] | MAKERS["latents"].key(settings)
    keys |= {name: keys["latents"] | MAKERS[name].key(settings) for name in MAKERS if name in wanted - {"latents"}}
    of_pairs = stored_columns(settings, split)
    shard_rows = rows_per_shard(rows, sum(column.bytes_per_row for column in of_pairs.values()))
    stages = []
    for name, key in keys.items():
        folder = StoreFolder(root, store_name(f"{name}-{split}", key))
        held = of_pairs if name == "pairs" else MAKERS[name].columns(settings, size)
        if name == "latents" and settings.pairs.degrades_online(split):
            held = {"latent": held["latent"]}
        stages.append(Stage(name, split, key, folder, rows, shard_rows, held, variant))
    return stages
