"""Roots of prepared stores: a local path, or a URI such as `s3://bucket/stores`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainables.common.paths import is_uri


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
