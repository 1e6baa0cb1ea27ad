"""The inputs of a run that goes on: whether its photographs and weights are there, and its weights are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.planning.question import Question
from sweeps.planning.settings import SweepSettings
from trainables.common.errors import InputError, one_line
from trainables.common.paths import is_uri
from trainables.pretrained.fetched import finished_at
from trainables.settings import flatten, is_read
from trainables.settings.roles import FLAGS, PATHS, ROLES, WEIGHT_PATHS

_READ = {".safetensors", ".json", ".txt", ".pth", ".pt", ".ckpt"}
"""Suffixes of the files in a folder of weights that are read."""
_END = 1_000_000  # bytes of a file's start and end


def check_there(settings: SweepSettings, run: str, given: Collection[str] = ()) -> None:
    """Refuses to go on without an input that the command named, and says how to tell where it is now.

    Args:
        run: as given to `--resume`.
        given: the flags that already say where an input is now, and the settings that `--set` names.

    Raises:
        InputError: a file or folder is not there.
    """
    pair = "--data-input PLACE --data-target PLACE"
    named = [
        ("--data", settings.data, "--data PLACE"),
        ("--data-input", settings.data_input, pair),
        ("--data-target", settings.data_target, pair),
        ("--checkpoint", settings.checkpoint, "--checkpoint PLACE"),
    ]
    for name, path in settings.set:
        if name in PATHS:
            named.append((name, path, f"{FLAGS[name]} PLACE" if name in FLAGS else f"--set {name}=PLACE"))
    for name, path, remedy in named:
        if os.path.isabs(path) and not os.path.exists(path):
            hint = "expected the place where it is now" if name in given else f"if it has been moved, give {remedy}"
            raise InputError(f"--resume {run}: {name} {one_line(path)} is not there; {hint}")


def weights_of(question: Question) -> dict[str, list[str]]:
    """Setting -> a hash for each file or folder of weights on this machine that its trials read.

    Of each file its name, its size, and its first and last megabyte count: other weights of the same network differ in
    them, and gigabytes need not be read. Weights that ship or come from a hub or a bucket have none.
    """
    found: dict[str, list[str]] = {}
    for trial in question.every_method:
        values = flatten(trial)
        for name in WEIGHT_PATHS:
            text = str(values[name])
            if name in question.space.parameters or not is_read(name, (trial.method,)):
                continue
            if text not in ROLES[name].builtin and not is_uri(text) and os.path.isabs(text) and os.path.exists(text):
                found.setdefault(name, []).append(_hash(finished_at(name, text)))
    return found


def check_same(question: Question, record: Mapping[str, Any], run: str) -> None:
    """Refuses other weights than those that a run was started with.

    Args:
        record: its settings.yaml.

    Raises:
        InputError: naming the setting.
    """
    if not record["methods"]:  # an earlier version, which recorded none
        return
    for name, hashes in weights_of(question).items():
        known = record["weights"].get(name)
        if known != hashes:
            place = one_line(flatten(question.trial)[name])
            what = "not the weights" if known else "no weights on this machine are those"
            raise InputError(f"--resume {run}: {name}={place}: {what} that the run was started with; restore those")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _files(path):
        size = file.stat().st_size
        digest.update(f"{file.name if file == path else file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_END))
            opened.seek(max(_END, size - _END))
            digest.update(opened.read(_END))
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from sorted(file for file in path.rglob("*") if file.suffix in _READ and file.is_file())
