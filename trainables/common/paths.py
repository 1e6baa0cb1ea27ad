"""Local paths and URIs as the command line takes them, and files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trainables.common.errors import InputError
from trainables.common.units import byte_text

if TYPE_CHECKING:
    from pyarrow import Buffer


_MAX_DISK_SHARE = 0.95  # of what is free


ROOT = Path(__file__).parents[2]
"""The folder that our packages lie in: a checkout, or the site-packages of an environment."""


def is_checkout() -> bool:
    """Whether the code runs from a checkout; otherwise pip installed it."""
    return (ROOT / "pyproject.toml").is_file()


def is_uri(root: str) -> bool:
    return "://" in root


def refuse_secrets(name: str, uri: str) -> None:
    """Refuses a URI with a password in it: settings are kept with the results, for all to read.

    Raises:
        InputError: naming the flag, without the secret; or it is no URI.
    """
    try:
        place = urlsplit(uri).netloc if is_uri(uri) else ""
    except ValueError as error:
        raise InputError(f"{name}: not a URI ({error}); expected such as s3://bucket/folder") from None
    if ":" in place.rpartition("@")[0]:
        raise InputError(
            f"{name}: holds credentials, which would be kept with the results; give them as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or as your cloud's own profile"
        )


def check_writable(flag: str, path: Path) -> None:
    """Refuses, making nothing, a folder that nothing can be kept in.

    Raises:
        InputError: it is not there and cannot be made, or cannot be written.
    """
    nearest = _existing(path)
    if not nearest.is_dir():
        raise InputError(f"{flag} {path}: {nearest} is a file; expected a folder, or one that can be made")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {path}: {nearest} cannot be written; expected a folder that can")


def check_room(needed: Mapping[str, tuple[Path, float]]) -> None:
    """Refuses what does not fit.

    Args:
        needed: flag -> a folder, there or not, and the bytes that are to come there. Those of one disk are added up.

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


PARTIAL = ".partial"
"""How the temporary names of files in the writing end; those of killed writers stay, until the next one clears them."""


def write_whole(path: Path, content: bytes | Buffer) -> None:
    """Writes a local file under a temporary name and renames it.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); what is there already stays") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def path_of(name: str, text: str) -> Path:
    """A path on this machine that a person gave, with `~` expanded.

    Args:
        name: of the flag or argument, for messages.

    Raises:
        InputError: it is empty, which Python takes for the working directory, or it cannot be looked at.
    """
    if not text:
        raise InputError(f"{name} is empty; expected a path")
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long; a user that there is not
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{name} {text}: no path that can be looked at ({reason})") from None
    return path
