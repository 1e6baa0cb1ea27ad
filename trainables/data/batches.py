"""Batches out of prepared stores: a pure function of (seed, step), so order survives restarts and world sizes.

Columns of a training batch, each (B, ...) float32:

| name | content |
|---|---|
| `target`, `degraded` | images in [-1, 1], (3, S, S) and (3, S/scale, S/scale) |
| `latent`, `latent_degraded` | unquantised autoencoder latents of the target and of the upsampled degraded image |
| `prior`, `taught` | x_T of one noise draw, and the teacher's deterministic x_0 from it |
| `restored` | the latent that the finished first stage restores from one noise draw |
| `noise` | the draw's noise, which `prior` was made with |
| `jump_noise` | as `fresh_noise`, apart from it |
| `fresh_noise`, `uniform` | normal noise of the shape of a latent or an image; a number in [0, 1); new every step |
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from trainables.data.prepare import DRAWN, Prepared, pair_noise, validation_noise
from trainables.data.tensors import to_tensor
from trainables.errors import InputError
from trainables.settings import TrialSettings

_ORDER, _FRESH, _JUMP = 11, 13, 17  # streams of the seed, apart from those of the pairs


class TrainingBatches:
    """Training batches of one worker.

    Args:
        columns: which of the columns above a batch holds.
        rank, world: this worker's share: batches are the same rows in the same order whatever `world` is.

    Raises:
        InputError: the batch cannot be shared out evenly among workers and accumulated parts.
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: TrialSettings,
        columns: Collection[str],
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        batch_size, parts = settings.training.batch_size, settings.training.accumulate
        if batch_size % (world * parts):
            raise InputError(
                f"training.batch_size={batch_size}: expected a multiple of {world * parts}, "
                f"{world} workers x training.accumulate={parts}"
            )
        self._prepared, self._settings, self._columns, self._device = prepared, settings, columns, device
        self._share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._draws = settings.first_stage.draws if "restored" in columns else settings.sinsr.draws
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> dict[str, Tensor]:
        """This worker's part of the batch of optimiser step `step` (from 0)."""
        batch_size, seed = self._settings.training.batch_size, self._settings.training.seed
        positions = np.arange(step * batch_size, (step + 1) * batch_size)[self._share]
        epochs, places = np.divmod(positions, self._prepared.train_rows)
        rows = np.array([self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)])
        # Every pass over the pairs uses another of a pair's draws, and neighbours use different ones.
        draws = (epochs + rows) % self._draws
        return {name: self._column(name, rows, draws, positions, seed) for name in sorted(self._columns)}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng([self._settings.training.seed, _ORDER, epoch])
            kept = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders = {**kept, epoch: rng.permutation(self._prepared.train_rows)}
        return self._orders[epoch]

    def _column(self, name: str, rows: np.ndarray, draws: np.ndarray, positions: np.ndarray, seed: int) -> Tensor:
        if name in ("fresh_noise", "uniform"):
            shape = self._prepared.train_noise
            generators = [np.random.default_rng([seed, _FRESH, int(p)]) for p in positions]
            # Both come from one stream: the number first, so that it does not depend on the latent's size.
            values = np.stack([g.random(dtype=np.float32) for g in generators])
            if name == "fresh_noise":
                values = np.stack([g.standard_normal(shape, np.float32) for g in generators])
        elif name == "jump_noise":
            generators = [np.random.default_rng([seed, _JUMP, int(p)]) for p in positions]
            values = np.stack([g.standard_normal(self._prepared.train_noise, np.float32) for g in generators])
        elif name == "noise":
            data_seed, shape = self._settings.data.seed, self._prepared.train_noise
            values = np.stack([pair_noise(data_seed, int(r), int(d), shape) for r, d in zip(rows, draws, strict=True)])
        else:
            store = self._prepared.train(name)
            values = store.rows(name, rows, draws if name in DRAWN else None)
        return to_tensor(values, self._device)


def validation_batches(
    prepared: Prepared, size: int, device: torch.device, draw: int = 0
) -> Iterator[dict[str, Tensor]]:
    """All validation pairs in order: `target`, `degraded`, the `noise` of one draw and, where the method has latents,
    `latent_degraded`, as above."""
    columns = ["target", "degraded", *(["latent_degraded"] if "latents" in prepared.validation_stores else [])]
    rows = np.arange(prepared.validation_rows)
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        batch = {name: prepared.validation(name).rows(name, chosen) for name in columns}
        batch["noise"] = np.stack([validation_noise(int(row), draw, prepared.validation_noise) for row in chosen])
        # What the noise that a stochastic sampler adds in every step is a function of.
        keys = torch.tensor([[int(row), draw] for row in chosen])
        yield {name: to_tensor(values, device) for name, values in batch.items()} | {"noise_key": keys}
