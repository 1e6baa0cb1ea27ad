"""Local paths and URIs from the command line, and files that are written completely or not at all."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from trainables.common.errors import InputError
from trainables.common.units import byte_text

if TYPE_CHECKING:
    from pyarrow import Buffer


_MAX_DISK_SHARE = 0.95  # of the free space


ROOT = Path(__file__).parents[2]
"""The folder of our packages: a checkout, or the site-packages of an environment."""


_SECRET_OPTION = re.compile("secret|password|passwd|token|signature|credential|access_?key|api_?key", re.IGNORECASE)
"""Names of a URI's options that hold secrets."""


def is_checkout() -> bool:
    """Whether the code runs from a checkout; otherwise pip installed it."""
    return (ROOT / "pyproject.toml").is_file()


def is_uri(root: str) -> bool:
    return "://" in root


def cache_of(uri: str) -> Path:
    """The folder of the user's cache for what is copied from a URI: below `XDG_CACHE_HOME`, or `~/.cache`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "restoration-sweeps" / hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:12]


def refuse_secrets(name: str, uri: str) -> None:
    """Refuses a URI with a secret in it, because settings are saved with the results, where others can read them.

    Looks at the login before a host, also of a URI inside the query, at the names of the query, and at all of it
    percent-encoded.

    Raises:
        InputError: the URI is invalid or has a secret; names the flag, without the secret.
    """
    if not is_uri(uri):
        return
    try:
        urlsplit(uri)
    except ValueError as error:
        raise InputError(f"{name}: not a URI ({error}); expected one such as s3://bucket/folder") from None
    if any(map(_has_secret, _decoded(uri))):
        raise InputError(
            f"{name}: contains credentials, which would be saved with the results; give them as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or in your cloud's own profile"
        )


def _decoded(text: str) -> Iterator[str]:
    """A text, and what it is when it is percent-decoded again and again."""
    while True:
        yield text
        if (decoded := unquote(text)) == text:
            return
        text = decoded


def _has_secret(uri: str) -> bool:
    own, *others = (re.split("[/?#&]", after)[0].rpartition("@")[0] for after in uri.split("://")[1:])
    query = [option.partition("=") for option in re.split("[?&]", uri)[1:]]
    others += [value.rpartition("@")[0] for _, _, value in query if "://" not in value]
    # Before a bucket may stand a user's name alone; before the host of a service it is a token.
    return (
        any(":" in text for text in _decoded(own))
        or any(others)
        or any(_SECRET_OPTION.search(key) for key, _, _ in query)
    )


def check_writable(flag: str, path: Path) -> None:
    """Refuses a folder that cannot be written to. Creates nothing.

    Raises:
        InputError: it does not exist and cannot be created, or cannot be written to.
    """
    nearest = _existing(path)
    if not nearest.is_dir():
        raise InputError(f"{flag} {path}: {nearest} is a file; expected a folder, existing or new")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {path}: {nearest} is not writable; expected a writable folder")


def check_room(needed: Mapping[str, tuple[Path, float]]) -> None:
    """Refuses files that do not fit on the disk.

    Args:
        needed: flag -> (folder, existing or not; bytes that will be written there). Bytes on one disk are added up.

    Raises:
        InputError: naming the flags and folders that share the disk.
    """
    disks: dict[int, list[str]] = {}
    for name, (folder, _) in needed.items():
        disks.setdefault(_existing(folder).stat().st_dev, []).append(name)
    for names in disks.values():
        folders = [needed[name][0] for name in names]
        wanted, free = sum(needed[name][1] for name in names), shutil.disk_usage(_existing(folders[0])).free
        if wanted > free * _MAX_DISK_SHARE:
            places = ", ".join(f"{name} {folder}" for name, folder in zip(names, folders, strict=True))
            raise InputError(f"{places}: needs about {byte_text(wanted)} of disk, {byte_text(free)} are free")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.absolute().parent)


RUN_SETTINGS = "settings.yaml"
"""File of every run's folder; by it, a source knows the results below it."""
PARTIAL = ".partial"
"""Suffix of a file that is being written. A killed writer leaves such files; the next writer removes them."""


def write_whole(path: Path, content: bytes | Buffer) -> None:
    """Writes a local file under a temporary name and renames it.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    try:
        replace_whole(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); existing files were kept") from None


def replace_whole(path: Path, content: bytes | Buffer) -> None:
    """As `write_whole`.

    Raises:
        OSError: for example, because the disk is full. An existing file is kept.
    """
    # Without the file's own name, which may be as long as a name can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


HALF_WRITTEN = ".tmp"
"""Ends the name of a file that `replace_file` is writing."""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a new file next to `path` and renames it, so that readers see the old file or the new one.

    For files with one writer at a time: what a killed one left is replaced by the next.

    Raises:
        OSError: for example, because the disk is full. An existing file is kept.
    """
    temporary = path.with_name(f".{path.name}{HALF_WRITTEN}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_durably(path: Path, text: str) -> None:
    """Writes a text file of which there is no other copy: also after a power loss, it is the old one or the new one.

    Raises:
        OSError: as `replace_file`.
    """

    def write(new: Path) -> None:
        new.write_text(text, encoding="utf-8")
        sync(new)

    replace_file(path, write)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: for example, because the disk is full.
    """
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:  # some network file systems cannot do it for folders
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(opened)


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a complete folder `new` in the place of `folder`, which may not exist, and removes the old one.

    Both must have the same parent. The two are swapped in one step where the file system can do it, so that a killed
    process leaves the old or the new folder. NFS cannot: there, a process that is killed between two renames leaves
    the old folder under a hidden name, until the next call.

    Raises:
        OSError: the folder cannot be written. An existing folder is kept.
    """
    for path in (*new.iterdir(), new):
        sync(path)
    aside = f".{folder.name}.old"
    if not folder.exists():
        new.rename(folder)
    elif _swapped(new, folder):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = folder.with_name(f"{aside}.{uuid.uuid4().hex}{PARTIAL}")
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    for left in folder.parent.glob(f"{glob.escape(aside)}.*{PARTIAL}"):  # also of a killed process
        shutil.rmtree(left, ignore_errors=True)
    sync(folder.parent)


_IN_WORKING_DIRECTORY, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


def _swapped(one: Path, other: Path) -> bool:
    """Swaps two folders in one step; False where the C library or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(rename(_IN_WORKING_DIRECTORY, paths[0], _IN_WORKING_DIRECTORY, paths[1], _EXCHANGE) == 0)


def is_utf8(path: Path) -> bool:
    """Whether the bytes of a path are UTF-8. pyarrow and safetensors open no others, and no text file holds them."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def path_of(name: str, text: str, any_bytes: bool = False) -> Path:
    """A local path that the user gave, with `~` expanded.

    Args:
        name: of the flag or argument, for messages.
        any_bytes: whether it need not be UTF-8.

    Raises:
        InputError: it is empty, which Python would take for the working directory, it is no valid path, or it is not
            UTF-8, with the working directory.
    """
    if not text:
        raise InputError(f"{name} is empty; expected a path")
    try:
        path = Path(text).expanduser()
        path.exists()
        whole = path.absolute()
    except (OSError, RuntimeError) as error:  # a name that is too long; an unknown user after ~
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{name} {text}: not a valid path ({reason})") from None
    if not any_bytes and not is_utf8(whole):
        raise InputError(f"{name} {text}: {whole} is not UTF-8; rename it, or choose another place")
    return path
