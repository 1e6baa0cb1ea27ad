"""A contact sheet: pairs of a store in one picture, to look at before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainables.data.stores.store import Store

_COLUMNS, _GAP = 4, 4
_BACKGROUND = 255


def write_contact_sheet(store: Store, path: Path, count: int = 24, side: int = 160) -> int:
    """Writes a PNG of pairs spread evenly over a store, each with the degraded image left and the target right.

    Args:
        count: largest number of pairs.
        side: of one image on the sheet, in pixels.

    Returns:
        The number of pairs on it.
    """
    rows = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).round().astype(int))
    sides = [
        [_shown(image, side) for image in store.rows(name, rows).transpose(0, 2, 3, 1)]
        for name in ("degraded", "target")
    ]
    down, across, wide = -(-len(rows) // _COLUMNS), min(_COLUMNS, len(rows)), 2 * side
    sheet = np.full((down * (side + _GAP) + _GAP, across * (wide + _GAP) + _GAP, 3), _BACKGROUND, np.uint8)
    for place, (degraded, target) in enumerate(zip(*sides, strict=True)):
        top = _GAP + place // _COLUMNS * (side + _GAP)
        left = _GAP + place % _COLUMNS * (wide + _GAP)
        sheet[top : top + side, left : left + side] = degraded
        sheet[top : top + side, left + side : left + 2 * side] = target
    Image.fromarray(sheet).save(path)
    return len(rows)


def _shown(image: np.ndarray, side: int) -> np.ndarray:
    """Enlarged with nearest neighbours, so that the degradation stays visible; reduced smoothly."""
    smaller = image.shape[0] > side
    return np.asarray(
        Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)
    )
