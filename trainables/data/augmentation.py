"""Changes of training pairs when they are read: other orientations, and inputs without damage.

Both depend only on the seed of the data, the epoch and the row of a pair, so all trials of a sweep, which may differ in
their own seeds, see equal pairs in an epoch, and so does a trial that is resumed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from trainables.common.errors import InputError
from trainables.data.stages.kinds import DRAWN, STAGE_OF
from trainables.images.orientation import ORIENTATIONS, orient
from trainables.methods.shared.encoding import batch_columns
from trainables.settings import TrialSettings

_FLIPS, _UNDAMAGED = 31, 37  # random streams of the data seed, different from those of pairs, noise and batches
_TARGET_OF = {"degraded": "target", "latent_degraded": "latent"}


def check_augmentation(settings: TrialSettings, columns: Collection[str]) -> None:
    """Refuses changes that are not exact for a training batch of `columns`.

    Raises:
        InputError: naming the setting.
    """
    if not settings.training.max_steps:
        return
    pairs, method = settings.pairs, settings.method
    read = batch_columns(settings, columns)
    prepared = sorted(column for column in read if STAGE_OF.get(column, "pairs") != "pairs")
    if pairs.flips != "none" and pairs.variants == 1 and prepared:
        raise InputError(
            f"pairs.flips={pairs.flips}: expected none, or pairs.variants of 2 or more, which are prepared in several "
            f"orientations: method={method} trains on prepared latents, and a mirrored image has others"
        )
    if pairs.undamaged and (drawn := sorted(DRAWN & set(columns))):
        raise InputError(
            f"pairs.undamaged={pairs.undamaged}: expected 0: method={method} trains on {drawn[0]!r}, which is prepared "
            "from the degraded image"
        )
    if pairs.undamaged and pairs.scale > 1 and "degraded" in columns:
        raise InputError(
            f"pairs.undamaged={pairs.undamaged}: expected 0 with pairs.scale={pairs.scale}: method={method} sees the "
            "degraded image at its own size, which the target does not have"
        )


@dataclass
class Augmentation:
    """The changes of a trial's training pairs.

    Args:
        rows: number of training rows in the store.
    """

    settings: TrialSettings
    rows: int
    _drawn: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def columns(settings: TrialSettings, columns: Collection[str]) -> set[str]:
        """The columns from which those of a batch are made."""
        targets = {target for degraded, target in _TARGET_OF.items() if degraded in columns}
        return set(columns) | (targets if settings.pairs.undamaged else set())

    def __call__(self, values: dict[str, np.ndarray], epochs: np.ndarray, rows: np.ndarray) -> None:
        """Changes `values`, columns of these rows in these epochs, in place. Degraded images of another size than their
        targets stay; see `undamaged`.
        """
        pairs = self.settings.pairs
        if pairs.undamaged:
            clean = np.flatnonzero(self.undamaged(epochs, rows))
            for degraded, target in _TARGET_OF.items():
                if degraded in values and len(clean) and values[degraded].shape == values[target].shape:
                    values[degraded][clean] = values[target][clean]
        if pairs.flips != "none" and pairs.variants == 1:
            orientations = (self._of(_FLIPS, epochs, rows) * ORIENTATIONS[pairs.flips]).astype(np.uint8)
            for images in values.values():
                orient(images, orientations)

    def undamaged(self, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether the input of these rows in these epochs is their target, bool."""
        return self._of(_UNDAMAGED, epochs, rows) < self.settings.pairs.undamaged

    def _of(self, stream: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Numbers in [0, 1) of these rows in these epochs, float32."""
        found = np.empty(len(rows), np.float32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._epoch(stream, int(epoch))[rows[here]]
        return found

    def _epoch(self, stream: int, epoch: int) -> np.ndarray:
        if (stream, epoch) not in self._drawn:
            rng = np.random.default_rng([self.settings.data.seed, stream, epoch])
            kept = {key: drawn for key, drawn in self._drawn.items() if key[1] >= epoch - 1}
            self._drawn = kept | {(stream, epoch): rng.random(self.rows, np.float32)}
        return self._drawn[stream, epoch]
