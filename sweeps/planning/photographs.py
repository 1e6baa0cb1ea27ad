"""What a sweep's source of images holds, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeps.formatting import count_text
from trainables.common.errors import InputError
from trainables.images.sources.catalogue import UnsuitableImages
from trainables.images.sources.photographs import Photographs
from trainables.images.sources.source import Source
from trainables.settings import TrialSettings
from trainables.settings.pairs import Split


@dataclass(frozen=True)
class FoundPhotographs:
    """The usable images of a source.

    Attributes:
        paired: whether they are pairs. scale: target side / degraded side.
        crop: side of a training crop, pixels.
        counts: split -> number of photographs or pairs, of the splits that the sweep reads.
        smallest, largest: (height, width) of the photographs or targets with the fewest and the most pixels.
        rejected: number of unusable ones.
    """

    paired: bool
    scale: int
    crop: int
    counts: Mapping[Split, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    rejected: int

    def text(self) -> str:
        """One line: `32 pairs, 64 -> 256 px; 26 train, 3 validation, 3 test; crops of 128 px`."""
        total = count_text(sum(self.counts.values()), "pair" if self.paired else "photograph")
        low, high = (_size_text(size, self.scale if self.paired else 0) for size in (self.smallest, self.largest))
        sizes = f"{low} px" if self.smallest == self.largest else f"{low} to {high} px"
        splits = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        rejected = f"; {self.rejected} rejected" if self.rejected else ""
        return f"{total}, {sizes}; {splits}; crops of {self.crop} px{rejected}"


def _size_text(size: tuple[int, int], scale: int) -> str:
    """A size; `scale` > 0 shows the degraded size before it."""
    height, width = size
    sides = [(width // scale, height // scale)] if scale else []
    texts = [f"{wide}" if wide == tall else f"{wide} x {tall}" for wide, tall in (*sides, (width, height))]
    return " -> ".join(texts)


def check_photographs(trial: TrialSettings, source: Source, cache: Path, test: bool = False) -> FoundPhotographs:
    """Checks that the source has enough photographs for the pairs.

    Args:
        cache: a folder that keeps the result of checking many images.
        test: whether test pairs are needed, if the source is large enough for a test split.

    Raises:
        InputError: see `Source.of_split` and `Pairs`; one error for all splits.
    """
    pairs = trial.pairs
    splits: tuple[Split, ...] = ("train", "validation", *(("test",) if test and pairs.test_pairs else ()))
    found: dict[Split, Photographs] = {}
    unsuitable: list[UnsuitableImages] = []
    for split in splits:
        try:
            found[split] = source.of_trial(trial, split, cache)
        except UnsuitableImages as error:
            unsuitable.append(error)
    problems = [problem for error in unsuitable for problem in error.problems]
    if found:
        from trainables.images.pairs import Pairs  # imports torch, so only after the checks above

        for split, photographs in found.items():
            if split != "train" and photographs:
                try:
                    Pairs(photographs, pairs, split, trial.data.seed)
                except InputError as error:
                    problems.append(str(error))
    if unsuitable:
        raise UnsuitableImages(unsuitable[0].label, problems)
    if problems:
        raise InputError("; ".join(problems))
    sizes = sorted((size for each in found.values() for size in each.sizes), key=lambda size: (size[0] * size[1], size))
    return FoundPhotographs(
        source.paired,
        pairs.scale,
        pairs.image_size,
        {split: len(photographs) for split, photographs in found.items()},
        sizes[0],
        sizes[-1],
        sum(len(each.rejected) for each in found.values()),
    )
