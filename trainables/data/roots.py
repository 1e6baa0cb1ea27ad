"""Roots of prepared stores: a local path, or a URI such as `s3://bucket/stores`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

from trainables.errors import InputError


def is_uri(root: str) -> bool:
    return "://" in root


def local_root(root: str) -> Path:
    """Where this machine reads the stores of a root: there, or for a URI in the user's cache, `XDG_CACHE_HOME`."""
    if not is_uri(root):
        return Path(root)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "restoration-sweeps" / hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:12]


def refuse_secrets(name: str, uri: str) -> None:
    """Refuses a URI with a password in it: settings are kept with the results, for all to read.

    Raises:
        InputError: naming the flag, without the secret.
    """
    if is_uri(uri) and ":" in urlsplit(uri).netloc.rpartition("@")[0]:
        raise InputError(
            f"{name}: holds credentials, which would be kept with the results; give them as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or as your cloud's own profile"
        )
