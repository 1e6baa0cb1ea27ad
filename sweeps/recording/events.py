"""The record of a run: a file to which one line is appended for every change of its tables.

    events.jsonl   {"table": "reports", "row": {...}, "crc": "1a2b3c4d"}

Each line ends with a checksum of its text. A line is on the disk (fsync) before the change shows in a table. Tables,
Optuna's journal and Tune's trials are derived from this file, so a damaged or deleted one of them is made again.

There must be only one writer: the driver that has locked the run's folder.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EVENTS = "events.jsonl"
Event = dict[str, Any]
_MOST_BYTES, _MOST_ROWS = 2**28, 10**7  # of one column: a file from a stranger must not fill the memory
_MARK = ', "crc": "'


class EventLog:
    """The file of events of a run. It is opened for each write, so that a pickled or moved owner stays valid."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS
        self._ends_line = False

    def read(self) -> tuple[list[Event], int]:
        """All events whose line is whole, and the number of damaged lines. A missing file has no events."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], 0
        found = [_event(line) for line in lines if line]
        events = [event for event in found if event is not None]
        return events, len(found) - len(events)

    def append(self, events: Iterable[Event]) -> None:
        """Appends events and waits until they are on the disk.

        Raises:
            OSError: for example, because the disk is full. A part of a line may be written; `read` drops it.
        """
        text = b"".join(map(_line, events))
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # A killed driver may have left half a line; the next one must not be joined to it.
            if size and not self._ends_line and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text
            self._ends_line = False
            _write_all(descriptor, text)
            os.fsync(descriptor)
            self._ends_line = True
        finally:
            os.close(descriptor)

    def replace(self, events: Iterable[Event]) -> None:
        """Replaces the whole file in one step."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            file.writelines(map(_line, events))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._ends_line = True


def _line(event: Event) -> bytes:
    text = json.dumps(event)
    return f'{text[:-1]}{_MARK}{_crc(text.encode())}"}}\n'.encode()


def _crc(text: bytes) -> str:
    return f"{zlib.crc32(text):08x}"


def _event(line: bytes) -> Event | None:
    """The event of a line; None if the line is damaged."""
    text, mark, crc = line.rpartition(_MARK.encode())
    if not mark or crc != _crc(text + b"}").encode() + b'"}':
        return None
    event: Event = json.loads(text + b"}")
    return event


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def packed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of equal keys by column, for values of thousands of images: column -> list, number or base64 text."""
    return {name: _packed([row.get(name) for row in rows]) for name in dict.fromkeys(n for row in rows for n in row)}


def unpacked(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `packed`."""
    lists = {name: _unpacked(column) for name, column in columns.items()}
    count = max((len(values) for values in lists.values()), default=0)
    return [{name: values[k] for name, values in lists.items()} for k in range(count)]


def _packed(values: list[Any]) -> Any:
    if all(type(value) is float for value in values):
        exact = np.array(values, dtype="<f8")
        single = exact.astype("<f4")
        same = np.array_equal(single.astype("<f8"), exact, equal_nan=True)
        return {"f4" if same else "f8": base64.b64encode((single if same else exact).tobytes()).decode()}
    if len(set(map(repr, values))) == 1:
        return {"same": values[0], "count": len(values)}
    return {"zlib": base64.b64encode(zlib.compress(json.dumps(values).encode())).decode()}


def _unpacked(column: Any) -> list[Any]:
    if "same" in column:
        return [column["same"]] * min(column["count"], _MOST_ROWS)
    if "zlib" in column:
        text = zlib.decompressobj().decompress(base64.b64decode(column["zlib"]), _MOST_BYTES)
        values: list[Any] = json.loads(text)
        return values
    ((kind, text),) = column.items()
    return [float(value) for value in np.frombuffer(base64.b64decode(text), dtype=f"<{kind}")]
