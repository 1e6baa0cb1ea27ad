"""The location of a prepared store, finished or not: a local folder, or a prefix of a bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from trainables.common.errors import InputError, one_line
from trainables.common.locations import resolve_uri
from trainables.common.paths import is_uri, write_whole
from trainables.data.stores.roots import local_root
from trainables.data.stores.shard_format import MANIFEST


@dataclass(frozen=True)
class StoreFolder:
    """The location of one store. Can be pickled; connects on first use.

    Attributes:
        root: of all stores: a local path, or a URI such as `s3://bucket/stores`.
        name: of this store, `<kind>-<key hash>`.

    Raises:
        InputError: from every method, when the location cannot be reached, read or written.
    """

    root: str
    name: str

    @property
    def remote(self) -> bool:
        return is_uri(self.root)

    @property
    def local(self) -> Path:
        """The folder that this machine reads."""
        return local_root(self.root) / self.name

    @property
    def complete(self) -> bool:
        """Whether the store is finished: its manifest is written last."""
        return self.has(MANIFEST)

    def has(self, file: str) -> bool:
        with self._filesystem() as (filesystem, folder):
            return bool(filesystem.get_file_info(f"{folder}/{file}").is_file)

    def files(self) -> dict[str, int]:
        """File name -> bytes, of the files in the folder; empty if the folder does not exist."""
        with self._filesystem() as (filesystem, folder):
            found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return {info.base_name: info.size for info in found if info.is_file}

    def read(self, file: str) -> pa.Buffer:
        """The content of a file; a local file is memory-mapped."""
        with self._filesystem() as (filesystem, folder):
            if self.remote:
                return filesystem.open_input_file(f"{folder}/{file}").read_buffer()
            return pa.memory_map(f"{folder}/{file}", "r").read_buffer()

    def fetch(self, file: str, sha256: str, place: Path) -> None:
        """Copies a file to `place` on this machine; refuses it if its hash differs."""
        content = self.read(file)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(
                f"--store {self.root}: {self.name}/{file} does not match its manifest; "
                f"delete {self.name} there to prepare it again"
            )
        write_whole(place, content)

    def write(self, file: str, content: bytes | pa.Buffer) -> None:
        """Writes a file, completely or not at all."""
        with self._filesystem() as (filesystem, folder):
            if self.remote:  # an object appears when its upload is complete
                with filesystem.open_output_stream(f"{folder}/{file}") as sink:
                    sink.write(content)
                return
            write_whole(Path(folder, file), content)

    @contextmanager
    def _filesystem(self) -> Iterator[tuple[fs.FileSystem, str]]:
        try:
            if self.remote:
                filesystem, root = resolve_uri(self.root, patient=True)
                yield filesystem, f"{root.rstrip('/')}/{self.name}"
            else:
                yield fs.LocalFileSystem(), str(self.local)
        except OSError as error:
            reason = one_line(error)
            raise InputError(f"--store {self.root}: {self.name} cannot be read or written there ({reason})") from None
