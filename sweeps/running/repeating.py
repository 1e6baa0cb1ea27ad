"""Finished trials whose checkpoints somebody has deleted or a disk has damaged: named, and repeated if asked."""

from __future__ import annotations

from collections.abc import Iterable

from sweeps.planning.run_folder import RunFolder
from sweeps.recording.progress import logger
from sweeps.recording.recorder import Recorder
from sweeps.recording.tables import TableRow, has_ended


def lost_trials(folder: RunFolder, rows: Iterable[TableRow], confirm_steps: int, *, look_inside: bool) -> list[str]:
    """The ids of finished trials without a checkpoint.

    Args:
        rows: of the leaderboard. confirm_steps: of the trials of the confirmation.
        look_inside: also those with damaged ones. In a bucket, damage is not looked for, because all weights would
            have to be downloaded.
    """
    finished = [
        row["id"]
        for row in rows
        if row["status"] == "finished" and row["checkpoint"] and has_ended(row, confirm_steps=confirm_steps)
    ]
    if finished and look_inside:
        logger.info("note       looking at the checkpoints of all finished trials")
    return folder.without_checkpoint(finished, look_inside) if finished else []


def repeat_lost(folder: RunFolder, recorder: Recorder, *, asked: bool) -> None:
    """Names the `lost_trials`. If asked, they train again, with their settings and seeds.

    Call it before the bucket is tidied up after trials that have ended.
    """
    rows = recorder.tables.leaderboard
    if lost := lost_trials(folder, rows, recorder.settings.confirm_steps, look_inside=asked):
        what = "gone or damaged" if asked else "gone"
        then = "train again" if asked else "numbers stay; --repeat-lost trains them again"
        logger.info("note       finished trials whose checkpoints are %s: %s; %s", what, ", ".join(lost), then)
    if asked:
        recorder.repeat(lost)
