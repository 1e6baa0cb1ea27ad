"""`data.source` as something to cut pairs from: photographs, or pairs of them."""

from __future__ import annotations

from trainables.data.paired_folders import PairFolder, is_paired, load_pairs
from trainables.data.photographs import PhotographFolder, Split, load_photographs


def load_source(source: str, split: Split, min_size: int, scale: int) -> PhotographFolder | PairFolder:
    """The photographs of a split; with their partners where `source` is a folder of pairs.

    Args:
        min_size: shorter side that a photograph or target needs, in pixels.
        scale: target side / degraded side of pairs.

    Raises:
        InputError: see `load_photographs` and `load_pairs`.
    """
    if is_paired(source):
        return load_pairs(source, split, min_size, scale)
    return load_photographs(source, split, min_size)
