"""The settings that a finished trial was trained with. Imports no torch, because the command line reads them too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.common.errors import InputError, one_line
from trainables.settings import TrialSettings, flatten, is_read, override, section_defaults
from trainables.settings.methods import METHODS
from trainables.settings.presets import preset
from trainables.settings.roles import trained_for

SETTINGS = "settings.json"
"""File next to a finished trial's weights: every setting by its dotted name."""
STATE, WEIGHTS, CHECKSUMS = "state.pt", "weights.safetensors", "checksums.json"
"""Files of a checkpoint: all that is needed to continue, the weights, and the SHA-256 of each other file."""


def finished_settings(folder: Path, method: str, name: str) -> dict[str, Any]:
    """Every setting of a finished trial by its dotted name, without names unknown to this version. Settings that an
    earlier version did not know have their defaults, as it had them: not the values of a preset. Those of the training
    loop and of the metrics are not filled in.

    Args:
        method: the required method; empty for any.
        name: the flag or setting that names the folder, for messages.

    Raises:
        InputError: not a finished trial, one of another method, or invalid values.
    """
    expected = f"expected a finished trial{f' of {method}' if method else ''}, such as the best/ of a run"
    # Of somebody else it may hold a pipe or a device, which would be read forever.
    for path in (folder / SETTINGS, folder / WEIGHTS):
        if path.exists() and not path.is_file():
            raise InputError(f"{name}: its {path.name} is no regular file; {expected}")
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: has no readable {SETTINGS} ({type(error).__name__}); {expected}") from None
    trained = found.get("method") if isinstance(found, dict) else None
    if not isinstance(trained, str):
        raise InputError(f"{name}: its {SETTINGS} names no method; {expected}")
    if trained not in METHODS or method not in ("", trained):
        raise InputError(f"{name}: a trial of {trained}; {expected}")
    sample = preset("sample").trial
    then = {
        key: value
        for key, value in section_defaults(TrialSettings).items()
        if is_read(key, (trained,)) and not key.startswith(("training.", "metrics."))
    }
    then |= {key: found[key] for key in found.keys() & flatten(sample).keys()}
    try:
        values = flatten(override(sample, then))
    except InputError as error:
        raise InputError(f"{name}: its {SETTINGS} has {one_line(error)}") from None
    return {key: value for key, value in values.items() if key in then}


def check_asked(found: Mapping[str, Any], wanted: Mapping[str, Any], name: str) -> None:
    """Refuses timesteps and objectives that a finished network was not trained for.

    Args:
        found: the settings it was trained with.
        wanted: the settings it is to restore with.
        name: as above.

    Raises:
        InputError: naming the setting.
    """
    trained = flatten(preset("sample").trial) | dict(found)
    for key in trained_for(trained, "at most"):
        if wanted[key] > found.get(key, wanted[key]):
            raise InputError(f"{key}={wanted[key]}: expected at most {found[key]}, which {name} was trained with")
    for key in trained_for(trained, "equal"):
        if wanted[key] != found.get(key, wanted[key]):
            raise InputError(f"{key}={wanted[key]}: expected {found[key]}, which {name} was trained with")


def write_checksums(folder: Path, step: int) -> None:
    """Writes the SHA-256 of each file of a checkpoint or of a best/ beside them."""
    sums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps({"step": step, "sha256": sums}, indent=1), encoding="utf-8")


def has_changed(folder: Path, name: str) -> bool:
    """Whether a file is not as its checksum says. Without checksums, as in earlier versions, nothing is known.

    Raises:
        ValueError: the checksums are not readable.
    """
    try:
        content = (folder / CHECKSUMS).read_bytes()
    except FileNotFoundError:
        return False
    known = known_sums(content).get(name)
    return known is not None and sha256(folder / name) != known


def known_sums(content: bytes | None) -> dict[str, str]:
    """File -> SHA-256, of the content of a `checksums.json`.

    Raises:
        ValueError: it is not readable, or None.
    """
    try:
        return dict(json.loads(content or b"")["sha256"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{CHECKSUMS} is not readable: {one_line(error)}") from None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
