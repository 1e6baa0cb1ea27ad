"""Roots of prepared stores: a local path, or a URI such as `s3://bucket/stores`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainables.common.paths import cache_of, is_uri, path_of


def store_root(text: str, flag: str = "--store") -> str:
    """A root that the user gave, as an absolute path or a URI, so that it is valid in every process.

    Args:
        flag: the flag that gave it, for messages.

    Raises:
        InputError: a text that cannot be a path.
    """
    if is_uri(text) and not text.startswith("file://"):
        return text
    path = unquote(urlsplit(text).path) if is_uri(text) else text
    return str(path_of(flag, path).resolve())


def local_root(root: str) -> Path:
    """The local folder for a root's stores: the root itself, or for a URI the user's cache, `XDG_CACHE_HOME`."""
    return cache_of(root) if is_uri(root) else Path(root)
