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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.planning.run_files import EVENTS
from trainables.common.paths import replace_file

Event = dict[str, Any]
_MOST_BYTES, _MOST_EQUAL = 2**26, 1000
_MARK = ', "crc": "'


class EventLog:
    """The file of events of a run. It is opened for each write, so that a pickled or moved owner stays valid."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS
        self._ends_line = False

    def read(self) -> Iterator[Event | None]:
        """The events, one line after the other; None for a damaged line. A missing file has no events."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                yield from (_event(text) for line in file if (text := line.rstrip(b"\n")))

    def append(self, events: Iterable[Event]) -> None:
        """Appends events and waits until they are on the disk. A killed process may leave a part of them.

        Raises:
            OSError: for example, because the disk is full. None of them is there then.
        """
        text = b"".join(map(_line, events))
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # A killed driver may have left half a line; the next one must not be joined to it.
            if size and not self._ends_line and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text
            self._ends_line = False
            try:
                _write_all(descriptor, text)
                os.fsync(descriptor)
            except OSError:
                with suppress(OSError):  # `read` drops half a line, but what one report gives is several lines
                    os.ftruncate(descriptor, size)
                raise
            self._ends_line = True
        finally:
            os.close(descriptor)

    def replace(self, events: Iterable[Event]) -> None:
        """Replaces the whole file in one step."""

        def write(new: Path) -> None:
            with open(new, "wb") as file:
                file.writelines(map(_line, events))
                file.flush()
                os.fsync(file.fileno())

        replace_file(self.path, write)
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
    try:
        event: Event = json.loads(text + b"}")
    except (ValueError, RecursionError):
        return None
    return event


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def packed(columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Columns of equal length, of thousands of images, with numbers as base64 text."""
    return {name: _packed(values) for name, values in columns.items()}


def _packed(values: Sequence[Any]) -> Any:
    if all(type(value) is float for value in values):
        exact = np.array(values, dtype="<f8")
        single = exact.astype("<f4")
        same = np.array_equal(single.astype("<f8"), exact, equal_nan=True)
        return {"f4" if same else "f8": base64.b64encode((single if same else exact).tobytes()).decode()}
    if len(set(map(repr, values))) == 1:
        return {"same": values[0], "count": len(values)}
    return {"zlib": base64.b64encode(zlib.compress(json.dumps(list(values)).encode())).decode()}


class Unpacker:
    """Unpacks the columns of one record.

    Its memory is limited by the size of the record, which may come from a stranger: a value that is repeated is not
    spread out, and compressed texts, such as the names of images, are kept once and have a limit together.

    Raises:
        ValueError: from every method, if a column is larger than any measurement.
    """

    def __init__(self) -> None:
        self._texts: dict[str, list[Any]] = {}
        self._left = _MOST_BYTES

    def constant(self, column: Mapping[str, Any]) -> Any:
        """The one value of a column in which all are equal."""
        if "same" in column:
            return column["same"]
        first, *others = self.values(column)
        if any(value != first for value in others):
            raise ValueError("a measurement has one trial, one split and one step")
        return first

    def values(self, column: Mapping[str, Any]) -> list[Any]:
        if "same" in column:
            if column["count"] > _MOST_EQUAL:
                raise ValueError(f"{column['count']} equal values")
            return [column["same"]] * column["count"]
        ((kind, text),) = column.items()
        if kind == "zlib":
            return self._decompressed(text)
        return [float(value) for value in np.frombuffer(base64.b64decode(text), {"f4": "<f4", "f8": "<f8"}[kind])]

    def _decompressed(self, text: str) -> list[Any]:
        if text not in self._texts:
            decoder = zlib.decompressobj()
            content = decoder.decompress(base64.b64decode(text), self._left + 1)
            self._left -= len(content)
            if self._left < 0 or not decoder.eof:
                raise ValueError("texts larger than any measurement")
            values: list[Any] = json.loads(content)
            self._texts[text] = values
        return self._texts[text]
