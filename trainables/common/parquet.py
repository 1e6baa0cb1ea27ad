"""Reading Parquet from somebody else: a small file must not fill the memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_ROWS_AT_ONCE = 16  # one value may be megabytes
_LARGEST_FACTOR, _LEAST_BYTES = 30.0, 64e6


class TooLarge(ValueError):
    """A file would take more memory than allowed."""


def read_limited(file: ParquetFile, group: int, columns: Sequence[str], most_bytes: float) -> pa.Table:
    """Reads columns of a row group and counts the bytes as they are decoded.

    The sizes in a file's footer are not enough: a value that is stored once, in the dictionary of a column, may be
    repeated in millions of rows, and a footer may be wrong.

    Args:
        most_bytes: memory for the decoded columns. Sixteen rows may exceed it.

    Raises:
        TooLarge: the columns take more.
        pa.ArrowException: the file is damaged.
    """
    batches, size = [], 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
        batches.append(batch)
        size += batch.nbytes
        if size > most_bytes:
            raise TooLarge(f"takes more than {most_bytes / 1e6:,.0f} MB of memory")
    return pa.Table.from_batches(batches, batches[0].schema if batches else file.schema_arrow)


def read_table(path: str | os.PathLike[str]) -> pa.Table:
    """A table of results. It may take 30 times the size of its file in memory, and 64 MB more.

    Opens the file once, so that it is either the old or the new one while another process replaces it.

    Raises:
        TooLarge: it takes more, or has nested columns.
        OSError, pa.ArrowException: it is missing or damaged.
    """
    from pyarrow.parquet import ParquetFile

    with open(path, "rb") as file:
        most = _LARGEST_FACTOR * os.fstat(file.fileno()).st_size + _LEAST_BYTES
        schema = ParquetFile(file).schema_arrow
        if nested := [field.name for field in schema if pa.types.is_nested(field.type)]:
            raise TooLarge(f"column {nested[0]} is nested; expected numbers and texts")
        # Texts stay in their dictionaries until it is known how much they take without them.
        texts = [field.name for field in schema if _is_text(field.type)]
        batches, size = [], 0.0
        for batch in ParquetFile(file, read_dictionary=texts).iter_batches(use_threads=False):
            batches.append(batch)
            size += 8.0 * batch.num_rows + sum(map(_plain_bytes, batch.columns))
            if size > most:
                raise TooLarge(f"takes more than {most / 1e6:,.0f} MB of memory")
    table = pa.Table.from_batches(batches, batches[0].schema if batches else schema)
    return table.cast(pa.schema([pa.field(f.name, _plain_type(f.type)) for f in table.schema]))


def _is_text(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain_bytes(column: pa.Array) -> float:
    """The memory that a column takes without a dictionary."""
    if not pa.types.is_dictionary(column.type) or not _is_text(column.type.value_type):
        return float(column.nbytes)
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return float(pc.sum(lengths).as_py() or 0) + 4.0 * len(column)
