"""Pairs of a target and its degraded version. Each pair depends only on its own number.

The degraded version is simulated from the target, or read from the source if its photographs are paired.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from PIL import Image

from trainables.common.errors import InputError
from trainables.images.degradations.sharpening import sharpened
from trainables.images.names import image_name
from trainables.images.orientation import MIRROR, ORIENTATIONS, Margins, oriented, oriented_margins
from trainables.images.simulation import simulated
from trainables.images.sources.photographs import MatchedPhotograph, Photograph, Photographs
from trainables.settings.pairs import PairSettings, Split

VALIDATION_SEED = 20_240_613  # never changes: every trial of every sweep is measured on the same pairs
MARGIN = 6  # width of the border around a crop that is degraded with it and then cut off, in degraded pixels
FLAT = 6.0  # a crop is nearly flat if the standard deviation of its green channel is below, in levels of 255
TRIES = 4  # crop positions to try while crops are nearly flat; the most detailed crop is kept
MIN_DOWNSCALE = 0.5
_TURNS = 1001  # random stream of the orders of orientations; smaller ones are those of variants
_NONE = np.empty((0, 0, 3), np.uint8)

PhotographSequence = Sequence[Photograph | MatchedPhotograph]


@dataclass(frozen=True, eq=False)
class Pair:
    """`target`: uint8 (S, S, 3). `degraded`: uint8 (S / scale, S / scale, 3), or (0, 0, 3) where it is made later, see
    `degraded_anew`. `name` names photograph and crop.
    """

    photograph: str
    name: str
    target: np.ndarray
    degraded: np.ndarray


@dataclass(frozen=True)
class _Crop:
    """A square with side `size` at (top, left) of a photograph shrunk by `shrink` (1 = unchanged)."""

    top: int
    left: int
    size: int
    shrink: float = 1.0


class Pairs(Sequence[Pair]):
    """All pairs of a split, made on access. A pair does not depend on which pairs were made before, nor on the process.

    Training: every photograph gives the same number of pairs. If they cannot be divided evenly, the photographs with
    the lowest name hashes give one more. A pair depends only on its photograph and its number among that photograph's
    pairs, so adding photographs does not change the pairs of the others. The photograph is shrunk by a factor from
    [0.5, 1], so that small crops have more content. The crop is placed at random, with up to four tries while it is
    nearly flat; half of the crops are mirrored. The crop is degraded with a margin of random width, so that JPEG blocks
    fall differently, and the margin is cut off afterwards. Colour channels are swapped in a share of the targets.

    Paired photographs are cropped, mirrored and their colours swapped in the same way on both sides, at whole pixels of
    the degraded one. They are not degraded, so they need no margin. They are not shrunk either: shrinking averages
    noise, sharpens blur and moves a halftone's frequency, so the network would learn another degradation than that of
    its validation pairs and of real input.

    Row i of every variant is a degradation of one target; `settings.variants` says how many variants there are. With
    `settings.flips` too, the target of a variant is in another orientation than those of the variants before it, until
    there are no others: with "mirrored" every second one is mirrored, with "turned" the order of orientations is drawn
    for each pair. A pair without variants has no other orientation here; `TrainingBatches` turns it when it is read.

    With `settings.degraded=online`, training pairs of photographs without a partner have the same targets, and no
    degraded version; `TrainingBatches` makes it.

    With `crop=rescaled`, photographs without a partner are not searched for detail: a square as large as their short
    side is shrunk to the target's size, without a margin, as `rescale_gt` of the reference does. With `crop=random`,
    their training crops are neither shrunk nor searched for detail, and have no margin.

    Validation and test: fixed crops at full resolution, named like `chelsea@064,128` (top, left) and distributed evenly
    over the photographs. In each photograph, the crops with the most detail are chosen from a grid. `seed` has no
    effect, and a crop is always degraded in the same way, however many crops there are.

    Args:
        photographs: those of `split`; sizes must reach `settings.size_of(split)`.
        seed: of the training pairs, not negative.
        variant: which variant of the training pairs, from 0. The first one is that of settings with one variant.

    Raises:
        InputError: no photographs, or those of validation or test have too few different crops; on access of a pair, a
            photograph that is too small or cannot be read.
    """

    def __init__(
        self, photographs: PhotographSequence, settings: PairSettings, split: Split, seed: int, variant: int = 0
    ) -> None:
        if not photographs:
            raise InputError(f"{split} pairs need photographs: none were given")
        self._photographs, self._settings, self._split, self._seed = photographs, settings, split, seed
        self._variant = variant
        # Crops of paired photographs start at a whole pixel on both sides.
        if isinstance(photographs, Photographs):
            paired = photographs.paired
        else:
            paired = isinstance(photographs[0], MatchedPhotograph)
        self._step = settings.scale if paired else 1
        self._rescaled = settings.crop == "rescaled" and not paired
        self._anywhere = settings.crop == "random" and not paired
        if split == "train":
            shares: Sequence[int] | np.ndarray = _training_shares(_names(photographs), settings.train_pairs)
        else:
            shares, self._overlap = _fixed_shares(_sizes(photographs), settings, split, self._step, self._rescaled)
        self._starts = np.concatenate([[0], np.cumsum(shares)])
        self._grid: tuple[int, list[_Crop]] = (-1, [])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> Pair: ...
    @overload
    def __getitem__(self, row: slice) -> list[Pair]: ...
    def __getitem__(self, row: int | slice) -> Pair | list[Pair]:
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        which, number = self._place(row)
        photograph = self._photographs[which]
        if self._split == "train":
            rng = np.random.default_rng([self._seed, 0, _hash(photograph.name), number])
            if self._rescaled:
                crop = _short_side(photograph, self._settings.image_size, rng)
            else:
                crop = _random_crop(photograph, self._settings.image_size, self._step, rng, chosen=not self._anywhere)
            name = image_name(photograph.name, f"{crop.top:03d},{crop.left:03d}/{crop.shrink:.2f}")
            name += f"#{self._variant}" if self._variant else ""
        else:
            crop = self._fixed_crop(which, photograph, number)
            name = image_name(photograph.name, f"{crop.top:03d},{crop.left:03d}")
            rng = np.random.default_rng([VALIDATION_SEED, zlib.crc32(name.encode())])
        if self._split == "train" and self._variant:  # the same target, with a degradation of its own
            own = np.random.default_rng([self._seed, self._variant, _hash(photograph.name), number])
            target, degraded = self._make(photograph, crop, rng, own, self._orientation(photograph, number))
        else:
            target, degraded = self._make(photograph, crop, rng, rng)
        return Pair(photograph.name, name, target, degraded)

    def photograph_of(self, row: int) -> str:
        """The name of a pair's photograph, without reading it."""
        which = self._place(row)[0]
        if isinstance(self._photographs, Photographs):
            return self._photographs.name(which)
        return self._photographs[which].name

    def _place(self, row: int) -> tuple[int, int]:
        """The index of the photograph, and the number of the pair among its pairs."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self._split} pair {row}: there are {len(self)}")
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        return which, row - int(self._starts[which])

    def _orientation(self, photograph: Photograph | MatchedPhotograph, number: int) -> int:
        count = ORIENTATIONS[self._settings.flips]
        if count <= 2:
            return self._variant % count
        order = np.random.default_rng([self._seed, _TURNS, _hash(photograph.name), number]).permutation(count - 1)
        return int(order[self._variant % count - 1]) + 1 if self._variant % count else 0

    def _fixed_crop(self, which: int, photograph: Photograph | MatchedPhotograph, number: int) -> _Crop:
        """One of the crops with the most detail, chosen once per photograph, ordered from top left to bottom right."""
        if self._rescaled:
            return _short_side(photograph, self._settings.size_of(self._split))
        if self._grid[0] != which:
            size, shape = self._settings.size_of(self._split), photograph.pixels.shape[:2]
            grid = [_Crop(top, left, size) for top, left in _grid(shape, size, self._overlap, self._step)]
            detail = [_detail(photograph.pixels, crop) for crop in grid]
            count = int(self._starts[which + 1] - self._starts[which])
            taken = sorted(sorted(range(len(grid)), key=lambda cell: -detail[cell])[:count])
            self._grid = which, [grid[cell] for cell in taken]
        return self._grid[1][number]

    def _make(
        self,
        photograph: Photograph | MatchedPhotograph,
        crop: _Crop,
        rng: np.random.Generator,
        degrading: np.random.Generator,
        orientation: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        settings, training = self._settings, self._split == "train"
        margins: Margins = (0, 0, 0, 0)
        if isinstance(photograph, MatchedPhotograph):
            sides = [_square(photograph.target, crop), _square(photograph.degraded, crop, settings.scale)]
        elif self._rescaled:
            sides = [_shrunk_square(photograph.pixels, crop)]
        elif training and self._anywhere:
            sides = [_square(photograph.pixels, crop)]
        else:
            target, margins = _with_margin(photograph.pixels, crop, settings.scale, rng)
            sides = [target]
        if training and rng.random() < 0.5:
            orientation ^= MIRROR
        sides, margins = [oriented(side, orientation) for side in sides], oriented_margins(margins, orientation)
        # If off, it draws no random number, so that other random choices stay the same.
        if training and settings.colour_swap_prob and rng.random() < settings.colour_swap_prob:
            channels = rng.permutation(3)
            sides = [side[..., channels] for side in sides]
        if len(sides) == 1 and training and settings.sharpened:
            sides = [sharpened(sides[0])]
        if len(sides) == 1:
            later = settings.degrades_online(self._split)
            sides.append(_NONE if later else simulated(sides[0], settings, degrading))
        target, degraded = sides
        return _cut(target, *margins, settings.scale), _cut(degraded, *margins)


def _names(photographs: PhotographSequence) -> Sequence[str]:
    return photographs.names if isinstance(photographs, Photographs) else [each.name for each in photographs]


def _sizes(photographs: PhotographSequence) -> list[tuple[int, int]]:
    if isinstance(photographs, Photographs):
        return photographs.sizes
    return [(each.pixels.shape[0], each.pixels.shape[1]) for each in photographs]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _training_shares(names: Sequence[str], count: int) -> np.ndarray:
    """The number of pairs from each photograph."""
    each, more = divmod(count, len(names))
    shares = np.full(len(names), each)
    if more:
        shares[np.argsort(np.array([_hash(name) for name in names], np.uint64), kind="stable")[:more]] += 1
    return shares


def _random_crop(
    photograph: Photograph | MatchedPhotograph, size: int, step: int, rng: np.random.Generator, chosen: bool
) -> _Crop:
    """A square of a photograph, at a multiple of `step`. `chosen`: shrunk at random, and with detail if possible."""
    height, width = photograph.pixels.shape[:2]
    short = min(height, width)
    if short < size:
        raise InputError(f"{photograph.name}: {width} x {height} is smaller than pairs.image_size={size}: remove it")
    matched = isinstance(photograph, MatchedPhotograph)
    shrink = rng.uniform(max(MIN_DOWNSCALE, size / short), 1.0) if chosen and not matched else 1.0
    best, most = None, -1.0
    for _ in range(TRIES if chosen else 1):
        top, left = (
            step * int(rng.integers(max(0, int(side * shrink) - size) // step + 1)) for side in (height, width)
        )
        crop = _Crop(top, left, size, shrink)
        detail = _detail(photograph.pixels, crop)
        if detail > most:
            best, most = crop, detail
        if most >= FLAT:
            break
    assert best is not None
    return best


def _short_side(photograph: Photograph | MatchedPhotograph, size: int, rng: np.random.Generator | None = None) -> _Crop:
    """The square as large as the short side, shrunk to `size`: at random along the long side, or at the centre. `top`
    and `left` are pixels of the photograph as it is.
    """
    height, width = photograph.pixels.shape[:2]
    short = min(height, width)
    if short < size:
        raise InputError(f"{photograph.name}: {width} x {height} is smaller than {size} pixels: remove it")
    room = (height - short, width - short)
    top, left = (int(rng.integers(each + 1)) for each in room) if rng else (each // 2 for each in room)
    return _Crop(top, left, size, size / short)


def _shrunk_square(pixels: np.ndarray, crop: _Crop) -> np.ndarray:
    """The square of `_short_side`. A box filter averages areas, as the reference's `INTER_AREA` does."""
    short = min(pixels.shape[:2])
    square = np.ascontiguousarray(pixels[crop.top : crop.top + short, crop.left : crop.left + short])
    return np.asarray(Image.fromarray(square).resize((crop.size, crop.size), Image.Resampling.BOX))


def _detail(pixels: np.ndarray, crop: _Crop) -> float:
    """Standard deviation of the green channel over every other pixel of the crop, in levels of 255."""
    top, left = round(crop.top / crop.shrink), round(crop.left / crop.shrink)
    side = round(crop.size / crop.shrink)
    return float(pixels[top : top + side : 2, left : left + side : 2, 1].std())


def _square(pixels: np.ndarray, crop: _Crop, scale: int = 1) -> np.ndarray:
    """The pixels of an unshrunk `crop`, from an image `scale` times smaller than the one it was chosen on."""
    top, left, size = crop.top // scale, crop.left // scale, crop.size // scale
    return pixels[top : top + size, left : left + size]


def _with_margin(
    pixels: np.ndarray, crop: _Crop, scale: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The crop with its surroundings, uint8, and the margins (top, bottom, left, right) in degraded pixels.

    A margin is 0.5 to 1.5 times `MARGIN`, or as much as the photograph has on that side.
    """
    height, width = (int(side * crop.shrink + 1e-6) for side in pixels.shape[:2])
    room = (crop.top, height - crop.top - crop.size, crop.left, width - crop.left - crop.size)
    wanted = rng.integers(MARGIN // 2, MARGIN + MARGIN // 2 + 1, size=4)
    top, bottom, left, right = (min(int(w), max(0, r) // scale) for w, r in zip(wanted, room, strict=True))

    y, x = crop.top - top * scale, crop.left - left * scale
    rows, columns = crop.size + (top + bottom) * scale, crop.size + (left + right) * scale
    if crop.shrink == 1.0:
        region = pixels[y : y + rows, x : x + columns]
    else:
        y, x, tall, wide = (round(value / crop.shrink) for value in (y, x, rows, columns))
        source = Image.fromarray(np.ascontiguousarray(pixels[y : y + tall, x : x + wide]))
        region = np.asarray(source.resize((columns, rows), Image.Resampling.LANCZOS))
    return region, (top, bottom, left, right)


def _cut(image: np.ndarray, top: int, bottom: int, left: int, right: int, scale: int = 1) -> np.ndarray:
    height, width = image.shape[:2]
    return image[top * scale : height - bottom * scale, left * scale : width - right * scale].copy()


def _fixed_shares(
    sizes: Sequence[tuple[int, int]], settings: PairSettings, split: Split, step: int, rescaled: bool = False
) -> tuple[list[int], bool]:
    """The number of validation or test crops from each photograph, and whether crops must overlap (by half) to reach
    their number.

    Rescaled crops are one per photograph. With more photographs than crops, the crops come from photographs spread
    evenly over the list.
    """
    size, count = settings.size_of(split), settings.count_of(split)
    for overlap in (False, True):
        room = [1 if rescaled else len(_grid(shape, size, overlap, step)) for shape in sizes]
        if sum(room) >= count:
            break
    else:
        raise InputError(
            f"pairs.{split}_pairs={count} is not accepted: {len(sizes)} {split} photographs have {sum(room)} "
            f"crops of pairs.{split}_size={size}: give at most {sum(room)}, smaller crops or more photographs"
        )
    shares = [0] * len(sizes)
    left = count
    while left:
        open_ = [which for which, taken in enumerate(shares) if taken < room[which]]
        if left < len(open_):
            open_ = [open_[i * len(open_) // left] for i in range(left)]
        for which in open_:
            shares[which] += 1
        left -= len(open_)
    return shares, overlap


def _grid(shape: Sequence[int], size: int, overlap: bool, step: int) -> list[tuple[int, int]]:
    """(top, left) of crops spread over a photograph: side by side, or overlapping by at most half.

    They are multiples of `step`, as `size` and the sides of `shape` are.
    """

    def starts(side: int) -> list[int]:
        if side < size:
            return []
        many = 1 + (side - size) // (size // 2 if overlap else size)
        ends = np.linspace(0, side - size, many) if many > 1 else [(side - size) // (2 * step) * step]
        return [step * round(at / step) for at in ends]

    return [(top, left) for top in starts(shape[0]) for left in starts(shape[1])]
