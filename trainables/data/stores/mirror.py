"""Copies of a bucket's stores on a node's own disk: copied once per node, not once per trial."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trainables.common.errors import InputError
from trainables.common.locks import locked
from trainables.common.paths import write_whole
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.inventory import WINDOWS
from trainables.data.stores.shard_format import MANIFEST, shard_name

_SPARE_SHARE = 0.05  # of a disk that stays free


def window_of(folder: StoreFolder) -> Path:
    """The folder in which some shards of a remote store are kept for a while; contains its manifest.

    Raises:
        InputError: the store cannot be read.
    """
    window = folder.local.parent / WINDOWS / folder.name
    manifest = bytes(folder.read(MANIFEST))
    if not (window / MANIFEST).exists() or (window / MANIFEST).read_bytes() != manifest:
        shutil.rmtree(window, ignore_errors=True)  # its store was deleted in the bucket and made again
        write_whole(window / MANIFEST, manifest)
    return window


def mirror(folder: StoreFolder) -> None:
    """Copies a finished remote store to `folder.local`, if it is not there yet.

    The first process of a node copies and the others wait. Shards of an interrupted copy are reused. The manifest is
    copied last.

    Raises:
        InputError: the store cannot be read, arrived damaged, or does not fit on the disk.
    """
    local = folder.local
    if (local / MANIFEST).exists():
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    with locked(local.with_name(f".{local.name}.lock")):
        if (local / MANIFEST).exists():
            return
        manifest = bytes(folder.read(MANIFEST))
        shards = dict(enumerate(json.loads(manifest)["shards"]))
        missing = {n: s for n, s in shards.items() if _size(folder, n) != s["bytes"]}
        _check_room(folder, sum(shard["bytes"] for shard in missing.values()))
        for number, shard in missing.items():
            folder.fetch(shard_name(number), shard["sha256"], local / shard_name(number))
        write_whole(local / MANIFEST, manifest)


def _size(folder: StoreFolder, number: int) -> int:
    path = folder.local / shard_name(number)
    return path.stat().st_size if path.exists() else -1


def _check_room(folder: StoreFolder, needed: int) -> None:
    disk = shutil.disk_usage(folder.local.parent)
    if needed > disk.free - _SPARE_SHARE * disk.total:
        raise InputError(
            f"--store {folder.root}: {folder.name} takes {needed / 1e9:.3g} GB, {disk.free / 1e9:.3g} are free in "
            f"{folder.local.parent}; read it in parts with --set data.window_shards=N, or set XDG_CACHE_HOME"
        )
