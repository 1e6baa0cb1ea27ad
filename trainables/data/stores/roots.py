"""Roots of prepared stores: a local path, or a URI such as `s3://bucket/stores`."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainables.common.errors import InputError
from trainables.data.progress import byte_text

_MAX_DISK_SHARE = 0.95  # of what is free


def is_uri(root: str) -> bool:
    return "://" in root


def store_root(text: str) -> str:
    """A root as every process finds it, wherever it runs: an absolute path, or a URI of a bucket."""
    if is_uri(text) and not text.startswith("file://"):
        return text
    path = unquote(urlsplit(text).path) if is_uri(text) else text
    return str(Path(path).expanduser().resolve())


def local_root(root: str) -> Path:
    """Where this machine reads the stores of a root: there, or for a URI in the user's cache, `XDG_CACHE_HOME`."""
    if not is_uri(root):
        return Path(root)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "restoration-sweeps" / hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:12]


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
