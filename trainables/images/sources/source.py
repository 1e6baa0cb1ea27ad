"""`data.source` as photographs or pairs of photographs, from which pairs are cropped."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from trainables.common.locations import Location
from trainables.images.sources import catalogue
from trainables.images.sources.catalogue import USUAL, Shares
from trainables.images.sources.images import Images
from trainables.images.sources.listing import Listing, list_pairs, list_source
from trainables.images.sources.photographs import Photographs, of_split
from trainables.images.sources.sample import SAMPLE_FILES
from trainables.settings import SAMPLE, TrialSettings
from trainables.settings.pairs import Split

MAX_HASHED_BYTES = 10**9  # a source of more is fingerprinted without reading it


class Source:
    """An opened source. It is listed once.

    Later changes of its files are not noticed. Open it again to see them.
    """

    def __init__(self, listing: Listing, is_sample: bool = False) -> None:
        self._listing, self._is_sample = listing, is_sample

    @property
    def paired(self) -> bool:
        """Whether it holds pairs: see `list_source`."""
        return self._listing.paired

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content of all splits, 64 hexadecimal digits. The first use reads the files.

        The sample and sources of up to 200 files and 1 GB per side are hashed by content. Larger ones are hashed by
        name, size and modification time of their files: reading terabytes for a cache key would cost more than the
        cache saves.
        """
        listing = self._listing
        digest = hashlib.sha256(repr(SAMPLE_FILES).encode() if self._is_sample else b"")
        for label, side in zip(("degraded/", "target/") if self.paired else ("",), listing.sides, strict=True):
            for name, content in zip(side.file_names, _contents(side), strict=True):
                digest.update(f"{label}{name}\0{content}\n".encode())
        return digest.hexdigest()

    def of_split(
        self,
        split: Split,
        min_size: int = 1,
        scale: int = 1,
        max_rejected: float = 1.0,
        cache: Path | None = None,
        shares: Shares = USUAL,
    ) -> Photographs:
        """The photographs of a split; with their targets if the source holds pairs.

        By default about one photograph or pair in ten is for validation and one in ten for test, chosen by the hash of
        its name, so adding some does not change the split of the others; see `catalogue.splits` for small sources,
        which may have no test split. Images are checked once for all splits. In a source of up to 200 images every
        image is decoded for that check; in larger ones only the headers are read, and damaged pixels are found on
        access.

        Args:
            min_size: smallest accepted shorter side of a photograph or target, in pixels.
            scale: target side / degraded side of pairs, exactly, after EXIF rotation.
            max_rejected: largest accepted share of unusable or too small images in the split. A `SourceWarning` counts
                and names them.
            shares: of the validation and test splits.
            cache: a folder that keeps the result of the check, so that the next start only lists the images; on refusal
                it keeps the complete list of rejected images.

        Raises:
            InputError: the source cannot be reached or read; pairs with sizes that do not match; no usable image, too
                few to split, none large enough, or too many rejected.
        """
        return of_split(self._listing, split, min_size, scale, max_rejected, cache, shares)

    def of_trial(self, settings: TrialSettings, split: Split, cache: Path | None = None) -> Photographs:
        """The photographs of a split that a trial's pairs are made from: see `of_split`."""
        data, pairs = settings.data, settings.pairs
        size, shares = pairs.size_of(split), Shares.of(data)
        return self.of_split(split, size, pairs.scale, data.max_rejected, cache, shares)


def open_source(source: str, degraded: str = "") -> Source:
    """Lists a source.

    Args:
        source: see `list_source`; the folder of the targets if `degraded` is given.
        degraded: folder of the degraded photographs of pairs, if it is not in `source`.

    Raises:
        InputError: the source cannot be found, reached or read; photographs without partner.
    """
    if degraded:
        return Source(list_pairs(degraded, source))
    return Source(list_source(source), is_sample=source == SAMPLE)


def _contents(side: Images) -> list[str]:
    """The hash of each file, or its size and modification time."""
    sizes = side.stamps[:, 0]
    if len(sizes) > catalogue.FULLY_CHECKED or sizes.sum() > MAX_HASHED_BYTES:
        return [f"{size} {changed}" for size, changed in side.stamps.tolist()]
    places = [side.root.join(name) for name in side.file_names]
    with ThreadPoolExecutor(side.threads) as pool:
        return list(pool.map(_sha256, places, sizes.tolist()))


def _sha256(place: Location, size: int) -> str:
    try:
        return hashlib.sha256(place.read()).hexdigest() if size >= 0 else "no file"
    except OSError as error:  # such a file is also left out of the photographs
        return f"{error.strerror}"
