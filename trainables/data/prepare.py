"""What no hyperparameter changes, computed once per sweep: pairs, latents, the teacher's targets.

Three stages, each its own store keyed by all that determined it, so that a change remakes only what follows it:
pairs (photographs, crops, degradation) -> latents (autoencoder) -> targets (teacher, diffusion, noise draws).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from trainables.data.degradation_settings import PAIRS_VERSION
from trainables.data.pairs import Pair, make_pairs
from trainables.data.photographs import Split, fingerprint, load_photographs
from trainables.data.store import Column, Store, store_path, write_store
from trainables.data.tensors import to_tensor, upsample
from trainables.settings import TrialSettings

STAGE_OF = {
    "target": "pairs",
    "degraded": "pairs",
    "latent": "latents",
    "latent_degraded": "latents",
    "noise": "latents",
    "prior": "targets",
    "taught": "targets",
}
_NOISE, _VALIDATION_NOISE = 7, 8  # streams of the data seed
_PAIRS_AT_ONCE, _ROWS_AT_ONCE = 256, 32

Progress = Callable[[str, int, int], None]
"""(stage, rows done, rows in all)."""


def pair_noise(seed: int, row: int, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The standard normal noise of one draw for one training pair, float32; equal on every machine."""
    return np.random.default_rng([seed, _NOISE, row, draw]).standard_normal(tuple(shape), np.float32)


@dataclass
class Prepared:
    """The stores a trial reads. Opens them on first use, so that it travels between processes as paths.

    Attributes:
        train_stores, validation_stores: stage -> folder.
    """

    train_stores: Mapping[str, str]
    validation_stores: Mapping[str, str]
    latent_shape: tuple[int, int, int]
    _open: dict[str, Store] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def train(self, column: str) -> Store:
        return self._store(self.train_stores[STAGE_OF[column]])

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

    def _store(self, path: str) -> Store:
        if path not in self._open:
            self._open[path] = Store(path)
        return self._open[path]


@dataclass(frozen=True)
class Stage:
    """One store to make, or to find made."""

    name: str
    split: Split
    key: Mapping[str, Any]
    path: Path
    rows: int
    columns: Mapping[str, Column]

    @property
    def exists(self) -> bool:
        return self.path.exists()

    @property
    def bytes(self) -> int:
        return self.rows * sum(column.bytes_per_row for column in self.columns.values())


def plan(settings: TrialSettings, root: Path, columns: Collection[str]) -> list[Stage]:
    """The stages that a batch of `columns` and the validation need, in order. Reads weights and photographs only to
    fingerprint them; makes nothing."""
    from trainables.weights import autoencoder_path, teacher_path
    from trainables.weights import fingerprint as weights_fingerprint

    # Noise is stored for validation; in training it is drawn on the fly.
    needed = {STAGE_OF[column] for column in columns if column in STAGE_OF and column != "noise"} | {"pairs"}
    source = fingerprint(settings.data.source)
    autoencoder = weights_fingerprint(autoencoder_path(settings.autoencoder.weights))
    stages = []
    for split in ("train", "validation"):
        keys: dict[str, dict[str, Any]] = {"pairs": _pairs_key(settings, split, source)}
        keys["latents"] = {**keys["pairs"], "autoencoder": autoencoder}
        if split == "train" and "targets" in needed:
            keys["targets"] = {
                **keys["latents"],
                "teacher": weights_fingerprint(teacher_path(settings.teacher.weights)),
                "network": _plain(settings.network),
                "diffusion": _plain(settings.diffusion),
                "draws": settings.sinsr.draws,
            }
        for name, key in keys.items():
            if split == "validation" or name in needed or (name == "latents" and "targets" in needed):
                kind = f"{name}-{split}"
                stages.append(
                    Stage(
                        name,
                        split,
                        key,
                        store_path(root, kind, key),
                        _rows(settings, split),
                        _columns(settings, name, split),
                    )
                )
    return stages


def prepare(
    settings: TrialSettings,
    root: Path,
    columns: Collection[str],
    device: torch.device | str = "cpu",
    progress: Progress = lambda stage, done, rows: None,
) -> Prepared:
    """Makes what `plan` lists and is not there yet; returns all of it, checked.

    Args:
        columns: of a training batch, see `trainables.data.batches`.
        progress: told before the first row of a store and as rows are done.

    Two callers on one machine do not make the same store twice: the second waits for the first.

    Raises:
        InputError: photographs or weights that cannot be used, or a damaged store.
    """
    root.mkdir(parents=True, exist_ok=True)
    stages = plan(settings, root, columns)
    made: dict[tuple[str, str], Stage] = {}
    for stage in stages:
        if not stage.exists:
            with FileLock(root / f".{stage.path.name}.lock"):
                if not stage.exists:
                    batches, names = _make(stage, settings, made, torch.device(device))
                    label = f"{stage.split} {stage.name}"
                    write_store(
                        root,
                        f"{stage.name}-{stage.split}",
                        stage.key,
                        stage.columns,
                        _counted(batches, label, stage.rows, progress),
                        names,
                    )
        made[stage.name, stage.split] = stage
        Store(stage.path, verify=settings.data.verify)
    latent = settings.pairs.image_size // settings.autoencoder.factor
    return Prepared(
        {stage.name: str(stage.path) for stage in stages if stage.split == "train"},
        {stage.name: str(stage.path) for stage in stages if stage.split == "validation"},
        (3, latent, latent),
    )


def _pairs_key(settings: TrialSettings, split: Split, source: str) -> dict[str, Any]:
    """Training pairs depend on their size, number and seed, validation pairs on theirs alone."""
    pairs = _plain(settings.pairs)
    own = (
        ("image_size", "train_pairs", "colour_swap_prob")
        if split == "train"
        else ("validation_size", "validation_pairs")
    )
    key = {name: pairs[name] for name in (*own, "scale", "degradation")}
    key |= {"version": PAIRS_VERSION, "source": source, "split": split}
    return key | ({"seed": settings.data.seed} if split == "train" else {})


def _plain(settings: Any) -> dict[str, Any]:
    return dataclasses.asdict(settings)


def _rows(settings: TrialSettings, split: Split) -> int:
    return settings.pairs.train_pairs if split == "train" else settings.pairs.validation_pairs


def _columns(settings: TrialSettings, stage: str, split: Split) -> dict[str, Column]:
    pairs = settings.pairs
    size = pairs.image_size if split == "train" else pairs.validation_size
    latent = (3, size // settings.autoencoder.factor, size // settings.autoencoder.factor)
    if stage == "pairs":
        degraded = size // pairs.scale
        return {"target": Column("uint8", (3, size, size)), "degraded": Column("uint8", (3, degraded, degraded))}
    if stage == "latents":
        columns = {"latent": Column("float32", latent), "latent_degraded": Column("float32", latent)}
        return columns if split == "train" else {**columns, "noise": Column("float32", latent)}
    draws = (settings.sinsr.draws, *latent)
    return {"prior": Column("float32", draws), "taught": Column("float32", draws)}


def _make(
    stage: Stage, settings: TrialSettings, made: Mapping[tuple[str, str], Stage], device: torch.device
) -> tuple[Iterator[dict[str, np.ndarray]], list[str]]:
    if stage.name == "pairs":
        size = settings.pairs.image_size if stage.split == "train" else settings.pairs.validation_size
        photographs = load_photographs(settings.data.source, stage.split, min_size=size)
        names: list[str] = []
        return _pair_batches(make_pairs(photographs, settings.pairs, stage.split, settings.data.seed), names), names
    pairs_store = Store(made["pairs", stage.split].path)
    if stage.name == "latents":
        return _latent_batches(pairs_store, settings, stage.split, device), pairs_store.names
    return _target_batches(pairs_store, Store(made["latents", stage.split].path), settings, device), pairs_store.names


def _pair_batches(pairs: Iterator[Pair], names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Pairs as they are made, never all in memory; their names are appended to `names` on the way."""
    while part := list(itertools.islice(pairs, _PAIRS_AT_ONCE)):
        names += [pair.name for pair in part]
        yield {
            name: np.stack([getattr(pair, name).transpose(2, 0, 1) for pair in part]) for name in ("target", "degraded")
        }


@torch.no_grad()
def _latent_batches(
    pairs: Store, settings: TrialSettings, split: Split, device: torch.device
) -> Iterator[dict[str, np.ndarray]]:
    from trainables.networks.autoencoder import encode
    from trainables.weights import load_autoencoder

    autoencoder = load_autoencoder(settings.autoencoder.weights, device)
    for rows in _parts(len(pairs)):
        degraded = upsample(to_tensor(pairs.rows("degraded", rows), device), settings.pairs.scale)
        batch = {
            "latent": encode(autoencoder, to_tensor(pairs.rows("target", rows), device)).cpu().numpy(),
            "latent_degraded": encode(autoencoder, degraded).cpu().numpy(),
        }
        if split == "validation":
            shape = batch["latent"].shape[1:]
            generators = (np.random.default_rng([_VALIDATION_NOISE, int(row)]) for row in rows)
            batch["noise"] = np.stack([g.standard_normal(shape, np.float32) for g in generators])
        yield batch


@torch.no_grad()
def _target_batches(
    pairs: Store, latents: Store, settings: TrialSettings, device: torch.device
) -> Iterator[dict[str, np.ndarray]]:
    from trainables.weights import build_diffusion, load_teacher

    teacher = load_teacher(settings.teacher.weights, settings.network, device)
    diffusion = build_diffusion(settings.diffusion)
    seed, draws = settings.data.seed, settings.sinsr.draws
    shape = latents.columns["latent"].shape
    for rows in _parts(len(pairs)):
        degraded = to_tensor(pairs.rows("degraded", rows), device)
        y = to_tensor(latents.rows("latent_degraded", rows), device)
        prior, taught = [], []
        for draw in range(draws):
            noise = to_tensor(np.stack([pair_noise(seed, int(row), draw, shape) for row in rows]), device)
            prior.append(diffusion.prior_sample(y, noise))
            taught.append(diffusion.sample_ddim(lambda x, t: teacher(x, t, lq=degraded), y, noise))  # noqa: B023
        yield {
            "prior": torch.stack(prior, 1).cpu().numpy(),
            "taught": torch.stack(taught, 1).float().cpu().numpy(),
        }


def _parts(rows: int) -> Iterator[np.ndarray]:
    for start in range(0, rows, _ROWS_AT_ONCE):
        yield np.arange(start, min(start + _ROWS_AT_ONCE, rows))


def _counted(
    batches: Iterator[dict[str, np.ndarray]], label: str, rows: int, progress: Progress
) -> Iterator[dict[str, np.ndarray]]:
    done = 0
    progress(label, done, rows)
    for batch in batches:
        yield batch
        done += len(next(iter(batch.values())))
        progress(label, done, rows)
