"""The file format of a prepared store: tensors of a fixed size in Arrow shards, and a manifest.

A store is a folder `<kind>-<key hash>/` with `shard-00000.arrow`, ... and `manifest.json`, which is written last. A
folder without a manifest is unfinished and is never read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT = 2

MANIFEST = "manifest.json"

NAME = "name"
"""The column of strings with the origin of each row; only pairs have it."""

SHARD_BYTES = 64 * 2**20

_SMALLEST_SHARD, _SHARDS = 16, 256  # smallest number of rows in a shard; number of shards above which shards grow

_REJECTED = b"rejected"


@dataclass(frozen=True)
class Column:
    """One tensor per row: `dtype` as NumPy names it, `shape` without the row dimension."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bytes_per_row(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Shard:
    """The manifest's entry for one shard. `rejected`: photograph -> the reason why its rows are missing here."""

    rows: int
    bytes: int
    sha256: str
    rejected: Mapping[str, str]


def key_hash(key: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the key's canonical JSON."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def store_name(kind: str, key: Mapping[str, Any]) -> str:
    return f"{kind}-{key_hash(key)}"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.arrow"


def shard_numbers(files: Iterable[str]) -> list[int]:
    """The numbers of the shards among `files`."""
    return [int(found[1]) for file in files if (found := re.fullmatch(r"shard-(\d{5,})\.arrow", file))]


def rows_per_shard(rows: int, bytes_per_row: int) -> int:
    """Rows of every shard but the last.

    Shards are small enough to keep all cores busy from the start and to lose little on an interrupt, and have at most
    64 MB.
    """
    wanted = max(_SMALLEST_SHARD, -(-rows // _SHARDS))
    return max(1, min(wanted, SHARD_BYTES // bytes_per_row))


def encode_shard(
    columns: Mapping[str, Column],
    values: Mapping[str, np.ndarray],
    names: Sequence[str] | None = None,
    rejected: Mapping[str, str] | None = None,
) -> pa.Buffer:
    """The bytes of a shard file; they depend on the arguments alone.

    Args:
        values: for every column an array (rows, *shape), which is cast to the column's type.
        names: one per row, or None for all rows.
        rejected: photograph -> the reason why its rows are missing.

    Raises:
        ValueError: rows of another shape, or values that a 16-bit float cannot represent.
    """
    fields, arrays = [], []
    for name, column in columns.items():
        rows = np.asarray(values[name])
        if rows.shape[1:] != column.shape:
            raise ValueError(f"column {name}: rows of shape {rows.shape[1:]}, expected {column.shape}")
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(rows, dtype=column.dtype)
        if column.dtype == "float16" and not np.isfinite(cast).all():
            raise ValueError(f"column {name}: a value is not finite or over 65504, the largest 16-bit float")
        fields.append((name, pa.list_(pa.from_numpy_dtype(np.dtype(column.dtype)), column.size)))
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(cast.reshape(-1)), column.size))
    if names is not None:
        fields.append((NAME, pa.string()))
        arrays.append(pa.array(names, pa.string()))
    schema = pa.schema(fields, {_REJECTED: json.dumps(dict(rejected or {}), sort_keys=True)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue()


def decode_shard(file: pa.Buffer, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """The columns in a shard's bytes, (rows, *shape), without a copy.

    Raises:
        ValueError, LookupError: not a shard with these columns.
    """
    (batch,) = record_batches(pa.BufferReader(file))
    return {name: column_view(batch, name, column) for name, column in columns.items()}


def describe_shard(file: pa.Buffer) -> Shard:
    """The manifest's entry for a shard with these bytes."""
    reader = pa.ipc.open_file(pa.BufferReader(file))
    rows = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
    return Shard(rows, file.size, hashlib.sha256(file).hexdigest(), json.loads(reader.schema.metadata[_REJECTED]))


def encode_manifest(
    kind: str, key: Mapping[str, Any], columns: Mapping[str, Column], shards: Sequence[Shard], made_from: str = ""
) -> bytes:
    """The bytes of a manifest. It contains no time and no path, so equal content has an equal manifest.

    Args:
        made_from: hash of the manifest of the pairs that the rows belong to; empty for pairs themselves.
    """
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "key": dict(key),
        "made_from": made_from,
        "rows": sum(shard.rows for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "columns": {name: {"dtype": c.dtype, "shape": list(c.shape)} for name, c in columns.items()},
        "shards": [
            {"rows": s.rows, "bytes": s.bytes, "sha256": s.sha256, "rejected": dict(s.rejected)} for s in shards
        ],
    }
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def record_batches(source: Any) -> Iterator[pa.RecordBatch]:
    file = pa.ipc.open_file(source)
    return (file.get_batch(number) for number in range(file.num_record_batches))


def column_view(batch: pa.RecordBatch, name: str, column: Column) -> np.ndarray:
    values = batch.column(name).flatten().to_numpy(zero_copy_only=True)
    return values.view(column.dtype).reshape(batch.num_rows, *column.shape)
