"""The sample: photographs of natural scenes that need no download, from scikit-image's wheel and from this package.

No network that ships was trained on any of them. `sample_photographs/photographs.csv` names the authors and licences of
those in this package.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainables.common.errors import InputError
from trainables.common.locations import Location
from trainables.images.sources.images import FileImages
from trainables.settings.pairs import Split

OWN = Path(__file__).parent / "sample_photographs"

# File -> split. Files with a folder are scikit-image's.
SAMPLE_FILES: dict[str, Split] = {
    "skimage/astronaut.png": "train",
    "skimage/motorcycle_left.png": "train",
    "beacon_street.jpg": "train",
    "colosseum.jpg": "train",
    "forget_me_nots.jpg": "train",
    "otters.jpg": "train",
    "skimage/coffee.png": "validation",
    "desert_hike.jpg": "validation",
    "singapore.jpg": "validation",
    "tea_gardens.jpg": "validation",
    "tiger.jpg": "validation",
    "skimage/chelsea.png": "test",
    "skimage/rocket.jpg": "test",
    "casa_mila.jpg": "test",
    "lake.jpg": "test",
    "meadow_flowers.jpg": "test",
    "osprey.jpg": "test",
}
SAMPLE_NAMES = {Path(file).stem: split for file, split in SAMPLE_FILES.items()}


class SampleImages(FileImages):
    """The sample's photographs, from both places."""

    def _file(self, row: int) -> Location:
        return _place(self.names[row].as_py())


def sample_images() -> SampleImages:
    """All of them, in the order of `SAMPLE_FILES`.

    Raises:
        InputError: scikit-image is not installed, or a file is missing.
    """
    stamps = np.array([_place(file).stamp() for file in SAMPLE_FILES], np.int64)
    for file, (size, _) in zip(SAMPLE_FILES, stamps, strict=True):
        if size < 0:
            raise InputError(f'source "sample": {_place(file)} is missing: install the package again')
    return SampleImages(Location(str(OWN)), pa.array(list(SAMPLE_FILES)), stamps)


def _place(file: str) -> Location:
    package, _, name = file.rpartition("/")
    return Location(str(_skimage_data() if package else OWN)).join(name)


@cache
def _skimage_data() -> Path:
    spec = importlib.util.find_spec("skimage")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise InputError('source "sample": some of its photographs are in scikit-image\'s wheel: install scikit-image')
    return Path(spec.origin).parent / "data"
