"""Images by row number, from any location. Names are stored in columns, so a million are sent quickly to a process."""

from __future__ import annotations

import errno
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from trainables.common.errors import InputError
from trainables.common.locations import Location
from trainables.images.sources.decode import read_pixels, read_size


class Images(ABC):
    """The images of one side of a source.

    Attributes:
        root: file names are relative to it.
        stamps: of the files, int64 (F, 2): bytes and time of the last change in ns; negative bytes if there is no file.
    """

    root: Location
    stamps: np.ndarray

    @property
    @abstractmethod
    def file_names(self) -> list[str]: ...

    @property
    @abstractmethod
    def threads(self) -> int:
        """The number of threads that may read at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: np.ndarray) -> Self:
        """Only the images with these row numbers."""

    @abstractmethod
    def patient(self) -> Self:
        """The same images, for reading over hours: see `Location.patient`."""

    @abstractmethod
    def place(self, row: int) -> str:
        """The location of an image, for messages."""

    @abstractmethod
    def short_place(self, row: int) -> str:
        """The location within the source."""

    @abstractmethod
    def size(self, row: int) -> tuple[int, int]:
        """(height, width) without decoding; raises as `read_size` and `read`."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: this file cannot be read.
            InputError: the bucket or Parquet file that holds it cannot be read.
        """

    def pixels(self, row: int) -> np.ndarray:
        """uint8 (H, W, 3); raises as `read` and `read_pixels`."""
        return read_pixels(self.read(row))

    def state(self) -> str:
        """64 hexadecimal digits that change when a file is added, removed or changed."""
        return hashlib.sha256("\0".join(self.file_names).encode() + self.stamps.tobytes()).hexdigest()


@dataclass(frozen=True)
class FileImages(Images):
    """One image per file.

    Attributes:
        names: of the files relative to `root`, or URIs, or absolute paths.
    """

    root: Location
    names: pa.StringArray
    stamps: np.ndarray

    @property
    def file_names(self) -> list[str]:
        return self.names.to_pylist()

    @property
    def threads(self) -> int:
        return 32  # most of them wait for the disk or the network

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Self:
        return replace(self, names=self.names.take(pa.array(rows)), stamps=self.stamps[rows])

    def patient(self) -> Self:
        return replace(self, root=replace(self.root, patient=True))

    def place(self, row: int) -> str:
        return str(self.root.join(self.names[row].as_py()))

    def short_place(self, row: int) -> str:
        return f"{self.root.name}/{self.names[row].as_py()}"

    def size(self, row: int) -> tuple[int, int]:
        with self._file(row).open() as file:
            return read_size(file)

    def read(self, row: int) -> bytes:
        return self._file(row).read()

    def _file(self, row: int) -> Location:
        if self.stamps[row, 0] < 0:  # reading a pipe would never end
            raise FileNotFoundError(errno.ENOENT, "a broken link, or not a regular file")
        return self.root.join(self.names[row].as_py())


def names_column(names: list[str], place: object) -> pa.StringArray:
    """Raises `InputError` for a name that is not valid UTF-8."""
    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: the file name {error.object!r} is not UTF-8: rename it") from None
