"""Prepared data as a trial reads it: the stores, opened and checked, and the noise of validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainables.common.errors import InputError
from trainables.data.stages.kinds import STAGE_OF
from trainables.data.stages.stage import Stage
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.inventory import mark_used
from trainables.data.stores.mirror import mirror, window_of
from trainables.data.stores.shard_format import MANIFEST
from trainables.data.stores.store import Store
from trainables.pretrained.autoencoders import latent_shape
from trainables.settings import TrialSettings
from trainables.settings.pairs import Split

VERIFIED_AT_START = 2**30
"""Stores of up to this many bytes are checked by hash at every start of a sweep; larger ones by size alone."""

_VALIDATION_NOISE = 8  # random stream, different from those of the data seed


def validation_noise(row: int, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The standard normal noise from which validation pair `row` is restored, float32; equal for all trials."""
    stream = [_VALIDATION_NOISE, row] + ([draw] if draw else [])
    return np.random.default_rng(stream).standard_normal(tuple(shape), np.float32)


@dataclass
class Prepared:
    """The stores that a trial reads. Opened on first use; pickled as paths.

    Attributes:
        train_stores, validation_stores, test_stores: stage -> folder; those of the first variant of the training pairs.
            A trial of the search has no test stores.
        train_noise, validation_noise, test_noise: (C, H, W) of the noise of one pair: the shape of a latent, or of an
            image.
        sources: folder -> where its shards are fetched from, for stores that are not completely on this machine.
        keep: how many shards of such a store are kept here at a time.
        later: variant of the training pairs -> its stages, for all but the first one. Their stores may be unfinished.
    """

    train_stores: Mapping[str, str]
    validation_stores: Mapping[str, str]
    train_noise: tuple[int, int, int]
    validation_noise: tuple[int, int, int]
    sources: Mapping[str, StoreFolder] = field(default_factory=dict)
    keep: int = 0
    test_stores: Mapping[str, str] = field(default_factory=dict)
    test_noise: tuple[int, int, int] = (0, 0, 0)
    later: Mapping[int, Sequence[Stage]] = field(default_factory=dict)
    _open: dict[str, Store] = field(default_factory=dict, repr=False)
    _opened: dict[int, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_opened": {}}

    def train(self, column: str, variant: int = 0) -> Store:
        """The store with a column of a variant of the training pairs.

        Raises:
            InputError: that of a later variant is unfinished, damaged, or has other pairs than the first variant.
        """
        return self._store(self._stores_of(variant)[STAGE_OF[column]])

    def is_prepared(self, variant: int) -> bool:
        """Whether a variant of the training pairs is finished."""
        return variant in self._opened or all(stage.exists for stage in self.later.get(variant, ()))

    def validation(self, column: str) -> Store:
        return self._store(self.validation_stores[STAGE_OF[column]])

    @property
    def train_rows(self) -> int:
        return len(self._store(self.train_stores["pairs"]))

    @property
    def validation_rows(self) -> int:
        return len(self._store(self.validation_stores["pairs"]))

    @property
    def validation_names(self) -> list[str]:
        return self._store(self.validation_stores["pairs"]).names

    @property
    def test(self) -> Prepared | None:
        """The test pairs in the place of the validation pairs; None for a trial of the search."""
        if not self.test_stores:
            return None
        return replace(self, validation_stores=self.test_stores, validation_noise=self.test_noise, test_stores={})

    def _stores_of(self, variant: int) -> Mapping[str, str]:
        if not variant:
            return self.train_stores
        if variant not in self._opened:
            paths, sources = _places(self.later[variant], self.keep // 2, verify=False)
            self.sources = {**self.sources, **sources}
            found = {name: path for (_, name), path in paths.items()}
            if (rows := len(self._store(found["pairs"]))) != self.train_rows:
                raise InputError(
                    f"{found['pairs']}: has {rows} of {self.train_rows} training pairs, because photographs could not "
                    "be read when it was prepared; delete it to prepare it again"
                )
            self._opened[variant] = found
        return self._opened[variant]

    def _store(self, path: str) -> Store:
        if path not in self._open:
            self._open[path] = Store(path, source=self.sources.get(path), keep=self.keep)
        return self._open[path]


def open_stores(settings: TrialSettings, stages: Sequence[Stage]) -> Prepared:
    """Opens finished stores on this machine. Stores of a bucket are copied here first, once.

    Those of later variants of the training pairs are opened when they are read: they may be unfinished.

    Raises:
        InputError: one is missing, is damaged or does not fit on the disk, or they do not belong together.
    """
    window = settings.data.window_shards
    paths, sources = _places([stage for stage in stages if not stage.variant], window, settings.data.verify)
    later: dict[int, list[Stage]] = {}
    for stage in stages:
        if stage.variant:
            later.setdefault(stage.variant, []).append(stage)
    shape = latent_shape(settings)
    return Prepared(
        {name: path for (split, name), path in paths.items() if split == "train"},
        {name: path for (split, name), path in paths.items() if split == "validation"},
        shape.of(settings.pairs.image_size),
        shape.of(settings.pairs.validation_size),
        sources,
        2 * window,  # the present window and the next
        {name: path for (split, name), path in paths.items() if split == "test"},
        shape.of(settings.pairs.size_of("test")),
        later,
    )


def _places(
    stages: Sequence[Stage], window: int, verify: bool
) -> tuple[dict[tuple[Split, str], str], dict[str, StoreFolder]]:
    """Where the finished stores of these stages are on this machine, and where those in parts are fetched from.

    Args:
        window: see `data.window_shards`.
        verify: see `data.verify`.
    """
    paths: dict[tuple[Split, str], str] = {}
    sources = {}
    for stage in stages:
        folder, place = stage.folder, stage.folder.local
        if folder.remote and window and stage.split == "train" and not (place / MANIFEST).exists():
            place = window_of(folder)
            sources[str(place)] = folder
        else:
            if folder.remote:
                mirror(folder)
            Store(place, verify=verify and stage.bytes <= VERIFIED_AT_START)
        mark_used(place)
        paths[stage.split, stage.name] = str(place)
        _check_pairs(Path(paths[stage.split, "pairs"]), place)
    return paths, sources


def _check_pairs(pairs: Path, place: Path) -> None:
    """Refuses a store whose rows belong to other pairs: to pairs that were deleted and prepared again with other
    content.
    """
    expected = hashlib.sha256((pairs / MANIFEST).read_bytes()).hexdigest()
    if place != pairs and json.loads((place / MANIFEST).read_text(encoding="utf-8"))["made_from"] != expected:
        raise InputError(f"{place}: was made from other pairs than {pairs} holds; delete it to prepare it again")
