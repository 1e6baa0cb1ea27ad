"""Files of TensorBoard events: records with checksums, written without a thread.

`SummaryWriter` starts a thread for each file and waits for it at each report, and its checksum of a picture takes tens
of milliseconds in Python. The format is that of TFRecord: length, checksum of the length, content, checksum of the
content.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

_ROW = 256
_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), bits reversed


_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})(?:\.(\d{6})\.)?")


class EventFile:
    """A new event file in a folder, which is created. Its name sorts after those that are there.

    Args:
        purge_step: TensorBoard drops what earlier files of the folder have from this step on.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _newest_name(folder).open("xb")
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(session_log=SessionLog(status=SessionLog.START), step=purge_step))

    def add(self, summary: Summary, step: int = 0, wall_time: float | None = None) -> None:
        self._write(Event(summary=summary, step=int(step)), wall_time)

    def _write(self, event: Event, wall_time: float | None = None) -> None:
        event.wall_time = time.time() if wall_time is None else wall_time
        write_framed(self._file, event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _newest_name(folder: Path) -> Path:
    """A name for the next file. TensorBoard reads files by name, so it must sort last, whatever the clock says."""
    found = (_NAME.match(path.name) for path in folder.iterdir())
    taken = max((int(match[1]) * 1_000_000 + int(match[2] or 999_999) for match in found if match), default=0)
    seconds, micros = divmod(max(time.time_ns() // 1000, taken + 1), 1_000_000)
    return folder / f"events.out.tfevents.{seconds:010d}.{micros:06d}.{socket.gethostname()}.{os.getpid()}"


def read_events(path: Path, most_bytes: int = 2**16) -> Iterator[Event]:
    """The events of a file up to a record that is damaged or was not written whole, without those that are larger, such
    as pictures.
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while len(header := file.read(12)) == 12:
            length, crc = struct.unpack("<QI", header)
            left -= length + 16
            if left < 0 or crc != _masked(crc32c(header[:8])):
                return
            if length > most_bytes:
                file.seek(length + 4, os.SEEK_CUR)
                continue
            content = file.read(length + 4)
            if content[length:] != struct.pack("<I", _masked(crc32c(content[:length]))):
                return
            try:
                event = Event.FromString(content[:length])
            except DecodeError:
                return
            yield event


def write_framed(file: BinaryIO, content: bytes) -> None:
    length = struct.pack("<Q", len(content))
    file.write(
        length + struct.pack("<I", _masked(crc32c(length))) + content + struct.pack("<I", _masked(crc32c(content)))
    )


def _masked(crc: int) -> int:
    """TFRecord rotates checksums, so that a checksum of a checksum stays useful."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C.

    It is linear: the rows of 256 bytes are looked up at once, and then joined one after the other.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    bytewise, of_row, past_row = _tables()
    data = np.frombuffer(content, np.uint8)
    count = len(data) // _ROW
    rows = np.bitwise_xor.reduce(of_row[np.arange(_ROW), data[: count * _ROW].reshape(count, _ROW)], axis=1)
    crc = 0xFFFFFFFF
    one, two, three, four = past_row
    for row in rows.tolist():
        crc = one[crc & 255] ^ two[crc >> 8 & 255] ^ three[crc >> 16 & 255] ^ four[crc >> 24] ^ row
    for byte in content[count * _ROW :]:
        crc = bytewise[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _tables() -> tuple[list[int], NDArray[np.uint32], list[list[int]]]:
    """What a byte does to the checksum: at once; (256, 256) at each place of a row; and each of its four bytes at the
    end of a row of zeros.
    """
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)

    def further(crc: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return table[crc & 255] ^ crc >> 8

    of_row = [table]
    for _ in range(_ROW - 1):
        of_row.insert(0, further(of_row[0]))
    past_row = []
    for place in range(4):
        crc = np.arange(256, dtype=np.uint32) << np.uint32(8 * place)
        for _ in range(_ROW):
            crc = further(crc)
        past_row.append(crc.tolist())
    return table.tolist(), np.stack(of_row), past_row
