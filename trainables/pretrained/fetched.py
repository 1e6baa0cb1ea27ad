"""Finished trials and files of weights, given by a path or by a URI. What is in a bucket is copied to the user's cache,
once per machine, and again when it has changed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trainables.common.buckets import BucketFolder, StoredObject, check_bucket
from trainables.common.errors import InputError, one_line
from trainables.common.locations import locate
from trainables.common.locks import locked
from trainables.common.paths import PARTIAL, cache_of, is_uri, path_of
from trainables.pretrained.finished_trial import CHECKSUMS, SETTINGS, known_sums

_BEST = "best"  # the folder of a run's winner
_READ = (".json", ".safetensors")  # what restoring reads of a folder


def finished_at(name: str, text: str) -> Path:
    """A finished trial: a checkpoint, the best/ of a run, or a run, for its best/. From a bucket without its state.

    Args:
        name: of the flag or setting, for messages.
        text: a folder or a URI.

    Raises:
        InputError: not a path, or a bucket that cannot be read or has no whole finished trial there.
    """
    if not is_uri(text):
        path = path_of(name, text)
        is_run = (path / _BEST / SETTINGS).is_file() and not (path / SETTINGS).exists()
        return path / _BEST if is_run else path
    return _folder(name, text, (SETTINGS,))


def weights_at(name: str, text: str) -> Path:
    """A file of weights, a flat folder in diffusers layout, or a finished trial: see `finished_at`. A process asks a
    bucket once.

    Raises:
        InputError: as `finished_at`.
    """
    return _fetched(name, text, cache_of(text)) if is_uri(text) else finished_at(name, text)


@functools.lru_cache(maxsize=64)
def _fetched(name: str, uri: str, cache: Path) -> Path:
    check_bucket(name, uri)
    place = locate(uri)
    size, changed = place.stamp()
    if size < 0:
        return _folder(name, uri, (SETTINGS, "config.json"))
    _copy(BucketFolder(uri).parent, cache / "file", {place.name: StoredObject(size, changed / 1e9)}, {})
    return cache / "file" / place.name


def _folder(name: str, uri: str, markers: Sequence[str]) -> Path:
    """A folder in a bucket, or its best/, whichever has one of the markers."""
    check_bucket(name, uri)
    given = BucketFolder(uri, patient=False)
    source = next((one for one in (given, given.join(_BEST)) if any(map(one.changed, markers))), None)
    if source is None:
        raise InputError(
            f"{name} {given}: has no {' or '.join(markers)}; expected a finished trial, such as the best/ of a run, or "
            "a run that has one"
        )
    # A bucket of somebody else must not make us write other files.
    own = {key: found for key, found in source.objects().items() if Path(key).name == key and key[0] != "."}
    files = {key: found for key, found in own.items() if Path(key).suffix in _READ}
    target = cache_of(uri) / "finished"
    try:
        sums = _sums(source) if CHECKSUMS in files else {}
        if missing := sorted(key for key in sums if Path(key).suffix in _READ and key not in files):
            raise _Damaged(f"{missing[0]} is missing")
        _copy(source, target, files, sums)
    except _Damaged as error:
        raise InputError(f"{name} {source}: is damaged ({error})") from None
    return target


class _Damaged(Exception):
    """A finished trial is not as it was written."""


def _sums(source: BucketFolder) -> dict[str, str]:
    """File -> SHA-256, of a checkpoint."""
    content = source.read(CHECKSUMS)
    try:
        return known_sums(content)
    except ValueError as error:
        raise _Damaged(str(error)) from None


def _copy(source: BucketFolder, target: Path, files: Mapping[str, StoredObject], sums: Mapping[str, str]) -> None:
    """Copies the files that are not here as they are there, and removes others.

    Raises:
        InputError: the bucket cannot be read, or this machine's disk not be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            for path in target.iterdir():
                if path.name not in files:
                    path.unlink()
            for name, found in files.items():
                _copy_file(replace(source, patient=True), target / name, found, sums.get(name, ""))
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({one_line(error)})") from None


def _copy_file(source: BucketFolder, path: Path, found: StoredObject, sha256: str) -> None:
    stamp = int(found.changed)  # not all file systems keep fractions of a second
    if path.is_file() and (path.stat().st_size, int(path.stat().st_mtime)) == (found.bytes, stamp):
        return
    new = path.with_name(f".{path.name}{PARTIAL}")
    try:
        digest = source.download(path.name, new)
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    if sha256 and digest != sha256:
        raise _Damaged(f"the content of {path.name} has changed since it was written")
    os.utime(new, (stamp, stamp))
    new.replace(path)
