"""Names of the files of a run that more than one module needs."""

RUN_SETTINGS, LOG = "settings.yaml", "sweep.log"
EVENTS = "events.jsonl"
"""The record of a run: see `sweeps.recording.events`."""
