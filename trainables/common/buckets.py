"""A folder in a bucket that is written to: objects below a URI."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from trainables.common.errors import InputError, one_line
from trainables.common.locations import locate, resolve_uri
from trainables.common.paths import refuse_secrets

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ACCEPTED = "a folder, or a bucket such as s3://bucket/results"
_SCHEMES = ("s3", "gs")
_PIECE = 16 * 2**20  # bytes that are read and sent at once


class StoredObject(NamedTuple):
    """An object: its bytes, and the time of its last change by the bucket's clock, in seconds."""

    bytes: int
    changed: float


@dataclass(frozen=True)
class BucketFolder:
    """A prefix of a bucket. It is pickled as text; each process connects at first use.

    Attributes:
        uri: as `resolve_uri` takes it, without credentials.
        patient: whether a bucket that does not answer is retried for minutes, or given up after seconds.

    Raises:
        InputError: from every method, when the bucket cannot be reached, read or written; names the object, without the
            options of the URI.
    """

    uri: str
    patient: bool = True

    def __str__(self) -> str:
        return str(locate(self.uri))

    @property
    def name(self) -> str:
        return locate(self.uri).name

    @property
    def parent(self) -> BucketFolder:
        parts = urlsplit(self.uri, allow_fragments=False)
        above = parts.path.rstrip("/").rpartition("/")[0]
        return BucketFolder(parts._replace(path=above).geturl(), self.patient)

    def join(self, name: str) -> BucketFolder:
        """The folder `name` below this one."""
        parts = urlsplit(self.uri, allow_fragments=False)
        return BucketFolder(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl(), self.patient)

    def objects(self) -> dict[str, StoredObject]:
        """Name relative to this folder -> object, of all objects below it, in subfolders too; listed anew each time."""
        from pyarrow.fs import FileSelector

        with self._doing("listed") as (filesystem, folder):
            found = filesystem.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
        return {
            info.path[len(folder) + 1 :]: StoredObject(info.size, info.mtime_ns / 1e9) for info in found if info.is_file
        }

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none of that name."""
        with (
            suppress(FileNotFoundError),
            self._doing("read", name) as (filesystem, folder),
            filesystem.open_input_stream(f"{folder}/{name}") as stream,
        ):
            content: bytes = stream.read()
            return content
        return None

    def changed(self, name: str) -> float:
        """The time of an object's last change by the bucket's clock, in seconds; 0 if there is none of that name."""
        with self._doing("read", name) as (filesystem, folder):
            info = filesystem.get_file_info(f"{folder}/{name}")
            return info.mtime_ns / 1e9 if info.is_file else 0.0

    def write(self, name: str, content: bytes) -> None:
        """Writes an object."""
        with (
            self._doing("written", name) as (filesystem, folder),
            filesystem.open_output_stream(f"{folder}/{name}") as sink,
        ):
            sink.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Copies a local file to an object, which appears when it is complete.

        Raises:
            OSError: the file cannot be read.
        """
        with (
            open(path, "rb") as file,
            self._doing("written", name) as (filesystem, folder),
            filesystem.open_output_stream(f"{folder}/{name}") as sink,
        ):
            while piece := file.read(_PIECE):
                sink.write(piece)

    def download(self, name: str, path: Path) -> str:
        """Copies an object to a local file, whose folder exists or is made; returns its SHA-256.

        Raises:
            FileNotFoundError: no such object.
            OSError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            with self._doing("read", name) as (filesystem, folder):
                stream = filesystem.open_input_stream(f"{folder}/{name}")
            with stream:
                while piece := self._piece(stream, name):
                    digest.update(piece)
                    file.write(piece)
        return digest.hexdigest()

    def _piece(self, stream: object, name: str) -> bytes:
        with self._doing("read", name):
            piece: bytes = stream.read(_PIECE)  # type: ignore[attr-defined]  # pyarrow has no type hints
            return piece

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects; those that do not exist are skipped."""
        for name in names:
            with self._doing("deleted", name) as (filesystem, folder), suppress(FileNotFoundError):
                filesystem.delete_file(f"{folder}/{name}")

    def delete_folder(self, name: str) -> None:
        """Deletes all objects below a subfolder."""
        with self._doing("deleted", name) as (filesystem, folder), suppress(FileNotFoundError):
            filesystem.delete_dir(f"{folder}/{name}")

    def move(self, name: str, to: str) -> None:
        """Moves an object inside the bucket, below this folder."""
        with self._doing("written", to) as (filesystem, folder):
            filesystem.copy_file(f"{folder}/{name}", f"{folder}/{to}")
        self.delete([name])

    @contextmanager
    def _doing(self, what: str, name: str = "") -> Iterator[tuple[FileSystem, str]]:
        """The file system and the path of this folder on it; names what failed inside.

        A missing object stays a `FileNotFoundError` where a caller asks for it.
        """
        shown = f"{self}/{name}" if name else str(self)
        try:
            yield resolve_uri(self.uri, self.patient)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(f"{shown}: cannot be {what} ({one_line(error)})") from None


def check_bucket(flag: str, uri: str) -> None:
    """Checks the form of a URI that results are written to, without asking the bucket.

    Raises:
        InputError: it names no bucket, is of another kind, or has credentials in it; names the flag.
    """
    refuse_secrets(flag, uri)
    parts = urlsplit(uri, allow_fragments=False)
    if parts.scheme not in _SCHEMES or not parts.netloc.rpartition("@")[2]:
        raise InputError(f"{flag} {parts.scheme}://{parts.netloc}{parts.path}: expected {ACCEPTED}")


def check_bucket_works(flag: str, uri: str) -> None:
    """Writes, reads, lists and deletes an object in a bucket, which takes a few requests.

    Raises:
        InputError: what of these is impossible, and why; names the flag.
    """
    above = BucketFolder(uri, patient=False)
    folder = above.join(f"probe-{uuid.uuid4().hex}")  # of its own: to list all results may take many requests
    name, content = "probe", json.dumps({"why": "checks that the bucket can be used"}).encode()
    try:
        folder.write(name, content)
        if folder.read(name) != content:
            raise InputError(f"{folder}/{name}: its content is not what was written")
        if list(folder.objects()) != [name]:
            raise InputError(f"{folder}: does not list what was written to it")
        above.delete_folder(folder.name)
        if folder.read(name) is not None:
            raise InputError(f"{folder}/{name}: still exists after it was deleted")
    except InputError as error:
        raise InputError(
            f"{flag} {error}; expected a bucket in which this machine may write, read, list and delete, with its "
            "region, and credentials in the environment or a profile"
        ) from None
