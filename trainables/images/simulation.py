"""Degraded images simulated from targets: once, when a pair is prepared, or anew in every epoch."""

from __future__ import annotations

import numpy as np

from trainables.images.degradations.degradation import degrade
from trainables.settings.pairs import PairSettings

_ANEW = 1002  # random stream of the data seed; smaller ones are those of pairs and of their variants
_BLOCK = 8  # side of JPEG's blocks, pixels


def simulated(target: np.ndarray, settings: PairSettings, rng: np.random.Generator) -> np.ndarray:
    """`target`, degraded by `settings.simulator`: uint8, `settings.scale` times smaller."""
    if settings.simulator == "print_to_camera":
        # Imported here: it needs scipy.ndimage, and few sweeps need it.
        from trainables.images.degradations.print_to_camera import print_to_camera

        return print_to_camera(target, settings.print, rng)
    return degrade(target, settings.degradation, rng, settings.scale)


def degraded_anew(target: np.ndarray, settings: PairSettings, seed: int, epoch: int, row: int) -> np.ndarray:
    """The degraded version of a training target in one epoch. It depends on the arguments alone.

    Prepared pairs of `crop=detailed` are degraded with a margin of the photograph, so that JPEG's blocks fall
    differently. A stored target has no margin: it is continued above and to the left by its mirror image, by a random
    part of a block, which is cut off afterwards.

    Args:
        target: uint8 (S, S, 3).
        seed: of the training pairs.
        row: of the target in its store.

    Returns:
        uint8 (S / scale, S / scale, 3).
    """
    rng = np.random.default_rng([seed, _ANEW, epoch, row])
    if settings.crop != "detailed":
        return simulated(target, settings, rng)
    top, left = (int(width) for width in rng.integers(_BLOCK, size=2))
    margins = (top * settings.scale, 0), (left * settings.scale, 0), (0, 0)
    return simulated(np.pad(target, margins, mode="reflect"), settings, rng)[top:, left:]
