"""Training pairs whose degraded images are made when a batch is read, anew in every epoch (`pairs.degraded=online`)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from trainables.common.errors import InputError
from trainables.data.stages.kinds import DRAWN
from trainables.images.simulation import degraded_anew
from trainables.images.sources.source import Source
from trainables.methods.shared.encoding import degrades_online
from trainables.settings import TrialSettings

STEPS_AHEAD = 2
"""Optimiser steps whose pairs are degraded together, while those before are trained on."""


def check_online(settings: TrialSettings, columns: Collection[str], source: Source) -> None:
    """Refuses degradations in every epoch where a method's `columns` or the source do not allow them.

    Raises:
        InputError: naming the setting.
    """
    if not degrades_online(settings):
        return
    if source.paired:
        raise InputError(
            f"pairs.degraded=online: expected prepared: data.source={settings.data.source} holds pairs, whose degraded "
            "images are not simulated"
        )
    if drawn := sorted(DRAWN & set(columns)):
        instead = "prepared, or sinsr.teaching=online" if settings.method == "sinsr" else "prepared"
        raise InputError(
            f"pairs.degraded=online: expected {instead}: method={settings.method} trains on {drawn[-1]!r}, which is "
            "prepared from the degraded image"
        )


def degrade_all(
    targets: np.ndarray, settings: TrialSettings, epochs: np.ndarray, rows: np.ndarray, out: np.ndarray
) -> None:
    """Degrades targets, each for its epoch.

    Args:
        targets: uint8 (N, 3, S, S), of these rows of the store.
        out: uint8 (N, 3, S / scale, S / scale), filled with the degraded images.
    """
    pairs, seed = settings.pairs, settings.data.seed
    for target, epoch, row, degraded in zip(targets, epochs, rows, out, strict=True):
        image = np.ascontiguousarray(target.transpose(1, 2, 0))
        degraded[...] = degraded_anew(image, pairs, seed, int(epoch), int(row)).transpose(2, 0, 1)
