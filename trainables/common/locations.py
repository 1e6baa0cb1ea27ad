"""Files and folders on this machine or in a bucket: how they are listed and read."""

from __future__ import annotations

import io
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import numpy as np

from trainables.common.errors import InputError, one_line
from trainables.common.paths import is_uri

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

ACCEPTED_PLACES = "a local path, or a URI that begins with s3://, gs:// or file://"
S3_OPTIONS = ("endpoint_override", "region", "scheme")
S3_CONNECT_SECONDS, S3_ANSWER_SECONDS, S3_ATTEMPTS = 2, 3, 3  # a missing bucket costs at most about 10 s
GS_SECONDS = 4  # of retries; the last retry may take another 4 s
PATIENT_ANSWER_SECONDS, PATIENT_ATTEMPTS, PATIENT_GS_SECONDS = 20, 10, 120  # growing pauses, about two minutes in sum
HEADER_BYTES = 64 * 2**10  # read from a bucket at once: enough to hold the size of most images


def resolve_uri(uri: str, patient: bool = False) -> tuple[FileSystem, str]:
    """The file system of a URI and the path on it. Each process keeps one file system per bucket and `patient`.

    Args:
        uri: `s3://bucket/key`, with pyarrow's `endpoint_override`, `region` and `scheme` in its query, or else from
            the usual AWS environment variables and profiles; `gs://bucket/key`; or `file:///path`.
        patient: see `Location`.

    Raises:
        InputError: a URI of another kind, without a bucket, or with unknown options.
        OSError: the URI names no region, and the bucket's region cannot be found.
    """
    place = locate(uri)
    return _file_system(place.store, patient), place.path


@dataclass(frozen=True)
class Location:
    """A file or folder. It is pickled as text; each process connects at first use.

    Attributes:
        path: absolute on this machine, or `bucket/key`.
        store: URI of the bucket with its credentials and options; empty for this machine.
        patient: whether a bucket that does not answer is retried for minutes, as for a preparation of hours, or given
            up after seconds, as for a check on the command line.

    Raises:
        InputError: from every method, when a bucket cannot be reached or read. Errors of a local disk are `OSError`s.
    """

    path: str
    store: str = ""
    patient: bool = False

    def __str__(self) -> str:
        """For messages and logs: without credentials and options."""
        return f"{urlsplit(self.store).scheme}://{self.path}" if self.store else self.path

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Location:
        return replace(self, path=posixpath.dirname(self.path))

    def join(self, name: str) -> Location:
        """`name` below this folder. A URI or an absolute path replaces the folder."""
        if is_uri(name) or name.startswith("/"):
            return replace(locate(name), patient=self.patient)
        return replace(self, path=posixpath.normpath(posixpath.join(self.path, name)))

    def kind(self) -> Literal["file", "folder", "nothing"]:
        if self.store:
            info = self._info()
            is_folder, is_file = info.type.name == "Directory", info.is_file
        else:
            is_folder, is_file = os.path.isdir(self.path), os.path.exists(self.path)
        return "folder" if is_folder else "file" if is_file else "nothing"

    def stamp(self) -> tuple[int, int]:
        """(bytes, time of the last change in ns) of a file; (-1, 0) where there is no file."""
        if self.store:
            info = self._info()
            return (info.size, info.mtime_ns) if info.is_file else (-1, 0)
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):  # a broken or circular link; a name that no file can have
            return -1, 0
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, 0)

    def subfolders(self) -> list[str]:
        """The sorted names of the folders, and of links to folders, directly in this folder."""
        if self.store:
            return sorted({name.partition("/")[0] for name, _ in _objects(self) if "/" in name})
        with os.scandir(self.path) as entries:
            # `DirEntry.is_dir` would raise at a circular link.
            return sorted(entry.name for entry in entries if os.path.isdir(entry))

    def loose_files(self, suffixes: tuple[str, ...]) -> list[str]:
        """The sorted names of the files directly in this folder with one of these suffixes, in any case; no hidden
        files.
        """
        if self.store:
            names = [name for name, _ in _objects(self) if "/" not in name]
        else:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in entries if os.path.isfile(entry)]
        return sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))

    def files(self, suffixes: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
        """The files below this folder with one of these suffixes, in any case.

        Skips hidden files and folders. Follows links to folders; see `_walk` for circular ones.

        Returns:
            Their sorted names relative to the folder, and their stamps, int64 (N, 2).
        """
        # pyarrow would enter hidden folders, and circular links.
        found = _objects(self) if self.store else self._walk()
        kept = sorted(each for each in found if each[0].lower().endswith(suffixes) and "/." not in f"/{each[0]}")
        if self.store:
            stamps = [stamp for _, stamp in kept]
        else:
            stamps = [Location(f"{self.path}/{name}").stamp() for name, _ in kept]
        return [name for name, _ in kept], np.array(stamps, np.int64).reshape(-1, 2)

    def open(self) -> BinaryIO:
        """The file, opened for reading; a file in a bucket is read `HEADER_BYTES` at a time."""
        if self.store:
            return io.BufferedReader(_RemoteFile(self), HEADER_BYTES)
        return open(self.path, "rb")

    def read(self) -> bytes:
        """The whole file."""
        if self.store:
            with self.reached() as (filesystem, path), filesystem.open_input_stream(path) as stream:
                return stream.read()
        with open(self.path, "rb") as file:
            return file.read()

    @contextmanager
    def reached(self) -> Iterator[tuple[FileSystem, str]]:
        """The pyarrow file system and path to read; inside, an `OSError` becomes an `InputError` that names the
        location.
        """
        try:
            yield _file_system(self.store, self.patient), self.path
        except OSError as error:
            raise InputError(f"{self}: {self._trouble(error)}") from None

    def _trouble(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError):
            return "no such file or folder"
        if not self.store:
            return f"cannot be read ({one_line(error)})"
        return (
            f"cannot be reached or read ({one_line(error)}): give a bucket, its region and credentials that can read "
            "it, in the URI or where the provider's own tools expect them"
        )

    def _info(self) -> FileInfo:
        with self.reached() as (filesystem, path):
            return filesystem.get_file_info(path)

    def _walk(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The files below a local folder, those of linked folders too.

        Every folder is entered once, or a photograph would be in two splits under two names: a folder of the tree by
        its own name, any other by that of the first link to it. A link to a folder that holds this one is not followed.
        """

        def refuse(error: OSError) -> None:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}): a part of {self}") from error

        entered: set[tuple[int, int]] = set()
        above = os.path.realpath(self.path)
        starts = [self.path]
        while starts:
            links: list[str] = []
            for start in starts:
                for folder, subfolders, files in os.walk(start, onerror=refuse):
                    status = os.stat(folder)
                    if (status.st_dev, status.st_ino) in entered:
                        subfolders[:] = []
                        continue
                    entered.add((status.st_dev, status.st_ino))
                    subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                    linked = (os.path.join(folder, name) for name in subfolders)
                    links += [path for path in linked if os.path.islink(path)]
                    below = folder[len(self.path) :].lstrip("/")
                    yield from (((f"{below}/{file}" if below else file), (0, 0)) for file in files)
            starts = [link for link in links if not f"{above}/".startswith(f"{os.path.realpath(link).rstrip('/')}/")]


def locate(text: str) -> Location:
    """The location of a path, relative to the working directory or absolute, or of a URI.

    Raises:
        InputError: a URI of an unknown kind, or one without a bucket.
    """
    if not is_uri(text):
        return Location(os.path.abspath(os.path.expanduser(text)))
    parts = urlsplit(text, allow_fragments=False)
    path = unquote(parts.path)
    bucket = parts.netloc.rpartition("@")[2]
    if parts.scheme == "file" and not bucket:
        return Location(os.path.abspath(path))
    if parts.scheme not in ("s3", "gs") or not bucket:
        raise InputError(f"{parts.scheme}://{bucket}{path}: cannot be read from there: give {ACCEPTED_PLACES}")
    return Location(f"{bucket}{path}".rstrip("/"), parts._replace(path="").geturl())


def shown(text: str) -> str:
    """A path or URI for messages: without credentials and options."""
    return str(locate(text)) if is_uri(text) else text


@lru_cache(maxsize=8)
def _objects(folder: Location) -> list[tuple[str, tuple[int, int]]]:
    """All objects below `folder`, listed once per process: 1,000 objects cost a request, and a run must see one
    state.
    """
    from pyarrow.fs import FileSelector

    with folder.reached() as (filesystem, path):
        found = filesystem.get_file_info(FileSelector(path, recursive=True))
    return [(info.path[len(path) + 1 :], (info.size, info.mtime_ns)) for info in found if info.is_file]


class _RemoteFile(io.RawIOBase):
    """A file in a bucket. Raises `InputError`, because decoders take an `OSError` for a damaged image."""

    def __init__(self, location: Location) -> None:
        self._location = location
        with location.reached() as (filesystem, path):
            self._file = filesystem.open_input_file(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with self._location.reached():
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


@lru_cache(maxsize=32)
def _file_system(store: str, patient: bool) -> FileSystem:
    from pyarrow import ArrowInvalid, fs

    if not store:
        return fs.LocalFileSystem()
    parts = urlsplit(store)
    login, _, bucket = parts.netloc.rpartition("@")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if parts.scheme == "gs":
        options.setdefault("retry_limit_seconds", PATIENT_GS_SECONDS if patient else GS_SECONDS)
        try:
            return fs.FileSystem.from_uri(parts._replace(query=urlencode(options)).geturl())[0]
        except ArrowInvalid as error:
            raise InputError(f"gs://{bucket}: {one_line(error)}") from None

    # `from_uri` would set no time limits.
    if unknown := sorted(set(options) - set(S3_OPTIONS)):
        raise InputError(f"s3://{bucket}: {unknown[0]} in its query is not accepted: give {', '.join(S3_OPTIONS)}")
    said = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    if not {"region", "endpoint_override"} & set(options) and not any(os.environ.get(name) for name in said):
        options["region"] = fs.resolve_s3_region(bucket)
    if login:
        key, _, secret = login.partition(":")
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    return fs.S3FileSystem(
        connect_timeout=S3_CONNECT_SECONDS,
        request_timeout=PATIENT_ANSWER_SECONDS if patient else S3_ANSWER_SECONDS,
        allow_delayed_open=True,  # a small object takes one request, not three
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=PATIENT_ATTEMPTS if patient else S3_ATTEMPTS),
        **options,
    )
