"""What no hyperparameter changes, computed once per sweep: pairs, latents, what a teacher or first stage makes of them.

Each stage is its own store keyed by all that determined it, so that a change remakes only what follows it:

    pairs (photographs, crops, degradation) -> latents (autoencoder) -> targets (ResShift teacher, noise draws)
                                                                     -> restored (finished first stage, noise draws)
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

from trainables.data.pair_settings import PAIRS_VERSION
from trainables.data.paired_folders import is_paired
from trainables.data.pairs import Pair, make_pairs
from trainables.data.photographs import Split, fingerprint
from trainables.data.source import load_source
from trainables.data.store import Column, Store, store_path, write_store
from trainables.data.tensors import to_tensor, upsample
from trainables.first_stage import FirstStage, first_stage_key
from trainables.latents import autoencoder_fingerprint, latent_shape, load_latents
from trainables.registry import METHODS
from trainables.settings import TrialSettings
from trainables.weights import build_diffusion, load_teacher, teacher_path
from trainables.weights import fingerprint as weights_fingerprint

STAGE_OF = {
    "target": "pairs",
    "degraded": "pairs",
    "latent": "latents",
    "latent_degraded": "latents",
    "prior": "targets",
    "taught": "targets",
    "restored": "restored",
}
DRAWN = ("prior", "taught", "restored")
"""Columns that hold several noise draws of each pair."""
LATENTS_VERSION = (
    2  # raise it when the same autoencoder and pairs give other latents, or what follows from them changes
)
_NOISE, _VALIDATION_NOISE = 7, 8  # streams of the data seed
_PAIRS_AT_ONCE, _ROWS_AT_ONCE = 256, 32

Progress = Callable[[str, int, int], None]
"""(stage, rows done, rows in all)."""


def pair_noise(seed: int, row: int, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The standard normal noise of one draw for one training pair, float32; equal on every machine."""
    return np.random.default_rng([seed, _NOISE, row, draw]).standard_normal(tuple(shape), np.float32)


def validation_noise(row: int, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The standard normal noise that validation pair `row` is restored with, float32; equal for all trials."""
    stream = [_VALIDATION_NOISE, row] + ([draw] if draw else [])
    return np.random.default_rng(stream).standard_normal(tuple(shape), np.float32)


@dataclass
class Prepared:
    """The stores a trial reads. Opens them on first use, so that it travels between processes as paths.

    Attributes:
        train_stores, validation_stores: stage -> folder.
        train_noise, validation_noise: (C, H, W) of the noise for one pair: of a latent, or of an image.
    """

    train_stores: Mapping[str, str]
    validation_stores: Mapping[str, str]
    train_noise: tuple[int, int, int]
    validation_noise: tuple[int, int, int]
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
    needed = {STAGE_OF[column] for column in columns if column in STAGE_OF}
    latent = METHODS[settings.method].latents != ""
    source = fingerprint(settings.data.source)
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
        for name, key in keys.items():
            path = store_path(root, f"{name}-{split}", key)
            stages.append(Stage(name, split, key, path, _rows(settings, split), _columns(settings, name, split)))
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
    shape = latent_shape(settings)
    return Prepared(
        {stage.name: str(stage.path) for stage in stages if stage.split == "train"},
        {stage.name: str(stage.path) for stage in stages if stage.split == "validation"},
        shape.of(settings.pairs.image_size),
        shape.of(settings.pairs.validation_size),
    )


def _pairs_key(settings: TrialSettings, split: Split, source: str) -> dict[str, Any]:
    """Training pairs depend on their size, number and seed, validation pairs on theirs alone."""
    pairs = _plain(settings.pairs)
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
        "network": _plain(settings.network),
        "diffusion": _plain(settings.resshift),
        "draws": settings.sinsr.draws,
    }


def _plain(settings: Any) -> dict[str, Any]:
    return dataclasses.asdict(settings)


def _rows(settings: TrialSettings, split: Split) -> int:
    return settings.pairs.train_pairs if split == "train" else settings.pairs.validation_pairs


def _columns(settings: TrialSettings, stage: str, split: Split) -> dict[str, Column]:
    pairs = settings.pairs
    size = pairs.image_size if split == "train" else pairs.validation_size
    if stage == "pairs":
        degraded = size // pairs.scale
        return {"target": Column("uint8", (3, size, size)), "degraded": Column("uint8", (3, degraded, degraded))}
    latent = latent_shape(settings).of(size)
    if stage == "latents":
        return {"latent": Column("float32", latent), "latent_degraded": Column("float32", latent)}
    if stage == "restored":
        return {"restored": Column("float32", (settings.first_stage.draws, *latent))}
    draws = (settings.sinsr.draws, *latent)
    return {"prior": Column("float32", draws), "taught": Column("float32", draws)}


def _make(
    stage: Stage, settings: TrialSettings, made: Mapping[tuple[str, str], Stage], device: torch.device
) -> tuple[Iterator[dict[str, np.ndarray]], list[str]]:
    if stage.name == "pairs":
        size = settings.pairs.image_size if stage.split == "train" else settings.pairs.validation_size
        photographs = load_source(settings.data.source, stage.split, size, settings.pairs.scale)
        names: list[str] = []
        return _pair_batches(make_pairs(photographs, settings.pairs, stage.split, settings.data.seed), names), names
    pairs_store = Store(made["pairs", stage.split].path)
    if stage.name == "latents":
        return _latent_batches(pairs_store, settings, device), pairs_store.names
    latents = Store(made["latents", stage.split].path)
    if stage.name == "restored":
        return _restored_batches(latents, settings, device), pairs_store.names
    return _target_batches(pairs_store, latents, settings, device), pairs_store.names


def _pair_batches(pairs: Iterator[Pair], names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Pairs as they are made, never all in memory; their names are appended to `names` on the way."""
    while part := list(itertools.islice(pairs, _PAIRS_AT_ONCE)):
        names += [pair.name for pair in part]
        yield {
            name: np.stack([getattr(pair, name).transpose(2, 0, 1) for pair in part]) for name in ("target", "degraded")
        }


@torch.no_grad()
def _latent_batches(pairs: Store, settings: TrialSettings, device: torch.device) -> Iterator[dict[str, np.ndarray]]:
    autoencoder = load_latents(settings, device)
    for rows in _parts(len(pairs)):
        degraded = upsample(to_tensor(pairs.rows("degraded", rows), device), settings.pairs.scale)
        yield {
            "latent": autoencoder.encode(to_tensor(pairs.rows("target", rows), device)).cpu().numpy(),
            "latent_degraded": autoencoder.encode(degraded).cpu().numpy(),
        }


@torch.no_grad()
def _target_batches(
    pairs: Store, latents: Store, settings: TrialSettings, device: torch.device
) -> Iterator[dict[str, np.ndarray]]:
    teacher = load_teacher(settings.teacher.weights, settings.network, device)
    diffusion = build_diffusion(settings.resshift)
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


def _restored_batches(latents: Store, settings: TrialSettings, device: torch.device) -> Iterator[dict[str, np.ndarray]]:
    first_stage = FirstStage(settings, device)
    seed, shape = settings.data.seed, latents.columns["latent"].shape
    for rows in _parts(len(latents)):
        x0, y = (to_tensor(latents.rows(name, rows), device) for name in ("latent", "latent_degraded"))
        restored = []
        for draw in range(settings.first_stage.draws):
            noise = to_tensor(np.stack([pair_noise(seed, int(row), draw, shape) for row in rows]), device)
            keys = [(seed, _NOISE, int(row), draw) for row in rows]
            restored.append(first_stage(y, noise, keys, x0))
        yield {"restored": torch.stack(restored, 1).float().cpu().numpy()}


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
