"""Checks of the place that `--results` names: a folder or a bucket."""

from __future__ import annotations

from pathlib import Path

from sweeps.planning.run_files import RUN_SETTINGS
from trainables.common.buckets import BucketFolder, check_bucket, check_bucket_works
from trainables.common.errors import InputError
from trainables.common.paths import check_writable, is_uri, path_of
from trainables.data.stores.roots import local_root


def check_results_place(results: str) -> None:
    """Checks `--results`, without asking a bucket: see `check_results` and `check_bucket`.

    Raises:
        InputError: it cannot be a folder of runs, or a bucket's working copies cannot be written here.
    """
    if is_uri(results):
        check_bucket("--results", results)
        check_writable("XDG_CACHE_HOME", local_root(results))
    else:
        check_results("--results", path_of("--results", results))


def check_bucket_results(uri: str) -> None:
    """Checks that runs can be kept in a bucket: writes, reads, lists and deletes an object.

    Raises:
        InputError: it cannot be used so, or is itself a run.
    """
    check_bucket_works("--results", uri)
    if BucketFolder(uri, patient=False).read(RUN_SETTINGS) is not None:
        raise InputError(f"--results {BucketFolder(uri)}: this is a run; give the folder that contains runs")


def check_results(flag: str, path: Path, written: bool = True) -> None:
    """Checks that runs or prepared data can be written to a folder. Creates nothing.

    Args:
        written: False for a folder that may only be read: prepared data of another user.

    Raises:
        InputError: it is itself the folder of a run, or it does not exist and cannot be created.
    """
    if (path / RUN_SETTINGS).exists():
        raise InputError(f"{flag} {path}: this is the folder of a run; give the folder that contains runs")
    if written:
        check_writable(flag, path)
