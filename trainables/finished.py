"""The settings that a finished trial was trained with, read without torch: the door looks into it too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainables.errors import InputError

SETTINGS = "settings.json"
"""Beside a finished trial's weights: every setting by its dotted name."""
ASSETS = Path(__file__).parent / "assets"
"""What ships with the project; `<method>_sample` are finished trials."""


def finished_settings(folder: Path, method: str, name: str) -> dict[str, Any]:
    """Every setting of a finished trial by its dotted name.

    Args:
        method: that it must be of. name: of the flag or setting that names the folder, for messages.

    Raises:
        InputError: not a finished trial, or one of another method.
    """
    expected = f"expected a finished trial of {method}, such as the best/ of a run"
    try:
        found = json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: no {SETTINGS} to read there ({type(error).__name__}); {expected}") from None
    trained = found.get("method") if isinstance(found, dict) else None
    if trained != method:
        raise InputError(f"{name}: a trial of {trained}; {expected}")
    return found
