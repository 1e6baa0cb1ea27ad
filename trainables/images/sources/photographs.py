"""Photographs of one split, alone or with their partners, decoded on access.

The split is by photograph, not by crop: no pixel of a validation or test photograph is used for training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args, overload

import numpy as np
import pyarrow as pa

from trainables.common.errors import InputError
from trainables.images.sources import decode
from trainables.images.sources.catalogue import USUAL, Part, Shares, usable_part
from trainables.images.sources.images import Images
from trainables.images.sources.listing import Listing, list_source
from trainables.settings.pairs import Split

__all__ = ["MatchedPhotograph", "Photograph", "Photographs", "Split", "UnusableImage", "load_photographs"]

CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Photograph:
    """One decoded photograph. `pixels`: uint8 (H, W, 3), RGB."""

    name: str
    pixels: np.ndarray


class UnusableImage(InputError):
    """This image cannot be used; others of its source may be usable."""


class MatchedPhotograph(NamedTuple):
    """A photograph and its target, RGB. `degraded`: uint8 (H, W, 3). `target`: uint8 (H * scale, W * scale, 3)."""

    name: str
    degraded: np.ndarray
    target: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """The target, under the same name as in `Photograph`: crops are chosen on it."""
        return self.target


class Photographs(Sequence[Photograph | MatchedPhotograph]):
    """Usable photographs by name, decoded on access; the last 256 MB of pixels are cached.

    Pickling sends a million of them as a few columns, without the cached pixels.

    Attributes:
        paired: whether each photograph has its target.
        rejected: name -> reason, of this split's unusable images; images found broken on access are added.
        found: number of photographs or pairs of this split, usable or not.
    """

    def __init__(
        self, names: pa.StringArray, sides: tuple[Images, ...], sizes: np.ndarray, rejected: dict[str, str], found: int
    ) -> None:
        """`names`, all `sides` (degraded, and targets if there are two) and `sizes` are in the same order."""
        self._names, self._sides, self._sizes = names, sides, sizes
        self.paired, self.rejected, self.found = len(sides) == 2, rejected, found
        self._cache: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("names", "sizes")}
        return {**state, "_cache": OrderedDict(), "_cached_bytes": 0}

    @cached_property
    def names(self) -> list[str]:
        """Relative paths; names of pairs have no extension. See `list_source` for other sources."""
        return self._names.to_pylist()

    def name(self, index: int) -> str:
        """One of `names`, without building the whole list."""
        return str(self._names[index].as_py())

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every photograph or target, without decoding."""
        return list(zip(self._sizes[:, 0].tolist(), self._sizes[:, 1].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Photograph | MatchedPhotograph: ...
    @overload
    def __getitem__(self, index: slice) -> Photographs: ...
    def __getitem__(self, index: int | slice) -> Photograph | MatchedPhotograph | Photographs:
        """Raises `UnusableImage` naming the file if its pixels are damaged, and another `InputError` if the file, or
        the bucket or Parquet file that holds it, cannot be read.
        """
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            sides = tuple(side.take(rows) for side in self._sides)
            return Photographs(self._names.take(pa.array(rows)), sides, self._sizes[rows], self.rejected, self.found)
        index = range(len(self))[index]
        name = self.name(index)
        if index in self._cache:
            self._cache.move_to_end(index)  # newest last
            pixels = self._cache[index]
        else:
            pixels = self._cache[index] = [self._decoded(name, side, index) for side in self._sides]
            self._cached_bytes += _bytes(pixels)
            while len(self._cache) > 1 and self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= _bytes(self._cache.popitem(last=False)[1])
        return MatchedPhotograph(name, *pixels) if self.paired else Photograph(name, *pixels)

    def _decoded(self, name: str, side: Images, index: int) -> np.ndarray:
        try:
            pixels = side.pixels(index)
        except (InputError, MemoryError):  # not caused by this image
            raise
        except Exception as error:  # decoders raise almost anything on a damaged file
            if isinstance(error, OSError) and error.errno:  # from the system, not a decoder: it was opened before
                raise InputError(
                    f"{side.place(index)}: cannot be read ({error.strerror}): the source must stay readable while it "
                    "is prepared"
                ) from error
            self.rejected[name] = reason = decode.reason(error)
            raise UnusableImage(f"{side.place(index)}: cannot be decoded ({reason}): replace or remove it") from error
        pixels.setflags(write=False)
        return pixels


def _bytes(pixels: list[np.ndarray]) -> int:
    return sum(side.nbytes for side in pixels)


def load_photographs(source: str, split: Split, min_size: int = 1) -> Photographs:
    """The usable photographs of one split; see `trainables.images.sources.source.Source.of_split`.

    Args:
        min_size: smallest accepted shorter side of a photograph, in pixels.

    Raises:
        InputError: see there.
    """
    return of_split(list_source(source), split, min_size)


def of_split(
    listing: Listing,
    split: Split,
    min_size: int = 1,
    scale: int = 1,
    max_rejected: float = 1.0,
    cache: Path | None = None,
    shares: Shares = USUAL,
) -> Photographs:
    """See `trainables.images.sources.source.Source.of_split`."""
    if split not in get_args(Split):
        raise InputError.of("split", split, f"one of {', '.join(get_args(Split))}")
    part: Part = usable_part(listing, split, min_size, scale, max_rejected, cache, shares)
    names = listing.names.take(pa.array(part.rows))
    sides = tuple(side.take(part.rows).patient() for side in listing.sides)
    return Photographs(names, sides, part.sizes, part.rejected, part.found)
