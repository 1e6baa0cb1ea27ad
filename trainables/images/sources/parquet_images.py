"""Images inside Parquet files, one image or one pair per row, as in published data sets and packed shards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from trainables.common.errors import InputError, one_line
from trainables.common.locations import Location
from trainables.common.parquet import TooLarge, read_limited
from trainables.images.sources.decode import read_size
from trainables.images.sources.images import Images

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

TABLE_COLUMNS = (("image",), ("input", "target"), ("captured", "original"))  # photographs; or degraded, target
MAX_GROUP_BYTES = 2 * 2**30
MAX_ROWS = 10**9
_SMALLER_GROUPS = "write it again with row groups of about 100 images"
NO_IMAGE = "no image in this row"


class ParquetImages(Images):
    """One column of Parquet files below `root`.

    Parquet is read by row groups. The last group stays in memory, encoded: the first image of a group reads the whole
    group, the next ones read nothing. So read rows in order. In random order every image reads a group, a hundred times
    its own bytes if groups have a hundred rows. Groups of more than 2 GB are refused, also where a small file expands
    to them.
    """

    def __init__(
        self, root: Location, names: Sequence[str], stamps: np.ndarray, column: str, which: np.ndarray, rows: np.ndarray
    ) -> None:
        """Image i is row `rows[i]` of file `names[which[i]]`."""
        self.root, self.stamps, self._names, self._column = root, stamps, tuple(names), column
        self._which, self._rows = which, rows
        self._file: tuple[int, ParquetFile, np.ndarray] | None = None
        self._group: tuple[int, int, pa.ChunkedArray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_group": None}

    @property
    def file_names(self) -> list[str]:
        return list(self._names)

    @property
    def threads(self) -> int:
        return 1  # one row group is in memory at a time

    def state(self) -> str:
        return f"{super().state()} {self._column}"

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: np.ndarray) -> Self:
        return type(self)(self.root, self._names, self.stamps, self._column, self._which[rows], self._rows[rows])

    def patient(self) -> Self:
        root = replace(self.root, patient=True)
        return type(self)(root, self._names, self.stamps, self._column, self._which, self._rows)

    def name(self, row: int) -> str:
        return f"{self._names[self._which[row]]}/{self._rows[row]:07d}"

    def place(self, row: int) -> str:
        return f"{self.root.join(self._names[self._which[row]])}, row {self._rows[row]}, column {self._column}"

    def short_place(self, row: int) -> str:
        return f"{self.name(row)}, column {self._column}"

    def size(self, row: int) -> tuple[int, int]:
        return read_size(io.BytesIO(self.read(row)))

    def read(self, row: int) -> bytes:
        """Raises `ValueError` for a row without an image, and otherwise as `Images.read`."""
        which, at = int(self._which[row]), int(self._rows[row])
        if self._file is None or self._file[0] != which:
            file = _opened(self.root.join(self._names[which]))
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._file, self._group = (which, file, np.cumsum([0, *counts])), None
        _, file, starts = self._file
        group = int(np.searchsorted(starts, at, side="right")) - 1
        if self._group is None or self._group[1] != group:
            self._group = None  # never two groups in memory
            self._group = which, group, self._read_group(file, group, self.root.join(self._names[which]))
        value = self._group[2][at - int(starts[group])].as_py()
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None:
            raise ValueError(NO_IMAGE)
        return content

    def _read_group(self, file: ParquetFile, group: int, place: Location) -> pa.ChunkedArray:
        leaf = self._column if _is_bytes(file.schema_arrow.field(self._column).type) else f"{self._column}.bytes"
        try:
            with place.reached():
                return read_limited(file, group, [leaf], MAX_GROUP_BYTES).column(self._column)
        except TooLarge as error:
            raise InputError(f"{place}: row group {group} {error}: {_SMALLER_GROUPS}") from None
        except pa.ArrowException as error:
            raise InputError(f"{place}: row group {group} cannot be read ({one_line(error)}): write it again") from None


def list_parquet(root: Location, names: Sequence[str], stamps: np.ndarray) -> tuple[list[str], tuple[Images, ...]]:
    """The rows of sorted files below `root`: their names, `<file>/<row>`, and one or two sides.

    Raises:
        InputError: a file cannot be read, does not have the columns of `TABLE_COLUMNS` or those of the first file, or
            has row groups too large for memory; or there are no rows.
    """
    with ThreadPoolExecutor(8) as pool:
        looked = list(pool.map(lambda name: _look(root.join(name)), names))
    columns = looked[0][0]
    for name, (others, _) in zip(names, looked, strict=True):
        if others != columns:
            raise InputError(
                f"{root.join(name)}: has {' and '.join(others)} where {names[0]} has {' and '.join(columns)}: "
                "give one kind of files"
            )
    counts = [rows for _, rows in looked]
    if sum(counts) > MAX_ROWS:
        raise InputError(f"{root.join(names[0])}: {sum(counts):,} rows in all; expected at most {MAX_ROWS:,}")
    which = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    rows = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    if not len(rows):
        raise InputError(f"{root.join(names[0])}: has no rows: give images")
    sides = tuple(ParquetImages(root, names, stamps, column, which, rows) for column in columns)
    return [sides[0].name(row) for row in range(len(rows))], sides


def _look(place: Location) -> tuple[tuple[str, ...], int]:
    """The columns with images, and the number of rows."""
    file = _opened(place)
    found = {field.name for field in file.schema_arrow if _holds_images(field.type)}
    fitting = [columns for columns in TABLE_COLUMNS if found.issuperset(columns)]
    if len(fitting) != 1:
        accepted = " or ".join(" with ".join(columns) for columns in TABLE_COLUMNS)
        raise InputError(
            f"{place}: has the columns {', '.join(f'{field.name} ({field.type})' for field in file.schema_arrow)}: "
            f"give {accepted}, as binary or as struct of bytes and path"
        )
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).total_byte_size
        if size > MAX_GROUP_BYTES:
            raise InputError(
                f"{place}: row group {group} holds {size / 2**30:.1f} GB, which has to fit into memory: "
                f"{_SMALLER_GROUPS}"
            )
    return fitting[0], file.metadata.num_rows


def _opened(place: Location) -> ParquetFile:
    from pyarrow.parquet import ParquetFile

    try:
        with place.reached() as (filesystem, path):
            return ParquetFile(filesystem.open_input_file(path), pre_buffer=True)
    except pa.ArrowException as error:
        raise InputError(f"{place}: not a Parquet file that can be read ({one_line(error)})") from None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_images(kind: pa.DataType) -> bool:
    """Binary, or the struct of `bytes` and `path` in Hugging Face data sets."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)
