"""Why a try of a trial ended, from what Tune keeps of its error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from trainables.common.errors import one_line

_MACHINE_LOST = ("node has died", "MachineLeaving", "machine will be taken away")
"""In the error of a trial: Ray's words for a node that is gone, and ours for one that leaves."""
_UNFIT = "OnUnfitNode: "  # before the reason, in the error of a trial


def how_it_ended(trial: Any) -> str:
    """What happened to a trial that is tried again, for its line on the terminal."""
    text, why = _last_error(trial), last_line(trial)
    if _UNFIT in text:
        return f"cannot train on its node ({why.rpartition(_UNFIT)[2]})"
    if any(sign in text for sign in _MACHINE_LOST):
        return "lost its machine"
    return f"failed ({why})"


def last_line(trial: Any) -> str:
    """The last line of a trial's latest error."""
    lines = [line for line in _last_error(trial).split("\n") if line.strip()]
    return one_line(lines[-1]) if lines else reason_of(trial)


def _last_error(trial: Any) -> str:
    """The text of a trial's latest error; empty if there is none. Tune moves the file, with all errors of the trial, to
    its storage later.
    """
    with suppress(OSError, TypeError):
        return Path(trial.error_file).read_text(encoding="utf-8", errors="replace").rpartition("Failure # ")[2]
    return ""


def reason_of(trial: Any) -> str:
    """The last line of the error that a trial's process raised."""
    error = trial.get_error() if hasattr(trial, "get_error") else None
    lines = [line for line in str(error or "").splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "the worker process died without an error message"
