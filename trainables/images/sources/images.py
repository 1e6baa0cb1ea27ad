"""Images by number, wherever they lie: columns of names, so that a million of them travel between processes at once."""

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
        root: what the names of files are relative to.
        stamps: of the files, int64 (F, 2): bytes and time of the last change in ns; negative bytes where no file is.
    """

    root: Location
    stamps: np.ndarray

    @property
    @abstractmethod
    def file_names(self) -> list[str]: ...

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many may read at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: np.ndarray) -> Self:
        """Those of these numbers alone."""

    @abstractmethod
    def patient(self) -> Self:
        """The same, to be read for hours: see `Location.patient`."""

    @abstractmethod
    def place(self, row: int) -> str:
        """Where an image lies, for messages."""

    @abstractmethod
    def short_place(self, row: int) -> str:
        """The same within its source."""

    @abstractmethod
    def size(self, row: int) -> tuple[int, int]:
        """(height, width) without decoding; raises as `read_size` and `read`."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded image.

        Raises:
            OSError: this one file cannot be read.
            InputError: the bucket or the Parquet file it lies in cannot be read.
        """

    def pixels(self, row: int) -> np.ndarray:
        """uint8 (H, W, 3); raises as `read` and `read_pixels`."""
        return read_pixels(self.read(row))

    def state(self) -> str:
        """Another one when a file is added, removed or changed: 64 hexadecimal digits."""
        return hashlib.sha256("\0".join(self.file_names).encode() + self.stamps.tobytes()).hexdigest()


@dataclass(frozen=True)
class FileImages(Images):
    """An image a file.

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
        return 32  # most wait, for a disk or for a network

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
        if self.stamps[row, 0] < 0:  # reading a pipe would not end
            raise FileNotFoundError(errno.ENOENT, "a link that leads nowhere, or not a regular file")
        return self.root.join(self.names[row].as_py())


def names_column(names: list[str], place: object) -> pa.StringArray:
    """Raises `InputError` for a name that no table can hold."""
    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: the file name {error.object!r} is not UTF-8: rename it") from None
