"""Names of the files of a run that more than one module needs."""

from trainables.common.paths import RUN_SETTINGS

__all__ = ["EVENTS", "LOG", "RUN_SETTINGS"]

LOG = "sweep.log"
EVENTS = "events.jsonl"
"""The record of a run: see `sweeps.recording.events`."""
