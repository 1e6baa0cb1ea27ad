"""Finished trials whose checkpoints somebody has deleted or a disk has damaged: named, and repeated if asked."""

from __future__ import annotations

from sweeps.planning.run_folder import RunFolder
from sweeps.recording.progress import logger
from sweeps.recording.recorder import Recorder
from sweeps.recording.tables import has_ended


def repeat_lost(folder: RunFolder, recorder: Recorder, *, asked: bool) -> None:
    """Names finished trials without a checkpoint. If asked, they and those with damaged ones train again, with their
    settings and seeds; in a bucket, damage is not looked for, because all weights would have to be downloaded.

    Call it before the bucket is tidied up after trials that have ended.
    """
    steps = recorder.settings.confirm_steps
    finished = [
        row["id"]
        for row in recorder.tables.leaderboard
        if row["status"] == "finished" and row["checkpoint"] and has_ended(row, confirm_steps=steps)
    ]
    if not finished:
        return
    if asked:
        logger.info("note       looking at the checkpoints of all finished trials")
    if lost := folder.without_checkpoint(finished, look_inside=asked):
        what = "gone or damaged" if asked else "gone"
        then = "train again" if asked else "numbers stay; --repeat-lost trains them again"
        logger.info("note       finished trials whose checkpoints are %s: %s; %s", what, ", ".join(lost), then)
    if asked:
        recorder.repeat(lost)
