"""Faults of a run's folder without a trial that trains.

The time budget of the run is used up. A resumed driver then starts nothing, not even Ray: it opens the run, its tables,
TensorBoard's files and Optuna's journal, and answers from the trials that have ended. This takes a second where a whole
sweep takes a minute.
"""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import yaml

from sweeps.command_line import main
from sweeps.planning.run_files import RUN_SETTINGS
from tests.faults.kinds import FOLDER, planted_mark
from tests.faults.runs import ENDED, INTERVAL, Results, half_written, messy, tree
from tests.helpers.tensorboard import Page
from trainables.training.checkpoint_folders import newest_whole

_TABLES_ONLY = ("events: deleted",)
"""Only the tables are left. They may lack the last report."""
_WINNER_LOST = ("folder of a finished trial deleted",)
"""The answer cannot be restored with: exit status 1."""


def _moved(run: Path) -> Path:
    new = run.parents[1] / "elsewhere" / "another name"
    new.parent.mkdir()
    run.rename(new)
    shutil.rmtree(run.parent)
    return new


def _copied(run: Path) -> Path:
    return Path(shutil.copytree(run, run.parents[1] / "copy", symlinks=True))


def _linked(run: Path) -> Path:
    link = run.parents[1] / "link"
    link.symlink_to(run)
    return link


ELSEWHERE, OUTSIDE = "resumed from another working directory", Path("/")
PLACED: dict[str, Callable[[Path], Path]] = {
    "run moved": _moved,
    "run copied": _copied,
    ELSEWHERE: lambda run: run,
    "resumed through a link": _linked,
}
"""Fault -> what puts a run there; returns the place."""
ALL = (*FOLDER, *PLACED)


def left_behind(name: str, original: Path, content: dict[str, str]) -> list[str]:
    """What a resume did at a run's old place; empty if nothing.

    Args:
        content: of the run before, as `tree`.
    """
    if name == "run moved" and original.parent.exists():
        return [f"written at the old place: {original.parent}"]
    return ["the original was changed"] if name == "run copied" and tree(original) != content else []


def read_after(name: str, run: Path, random: random.Random) -> list[str]:
    """What is wrong with a killed run that is resumed after the fault, without time for a trial; empty if nothing."""
    _use_up_time(run)
    before, original, newest, content = Results.of(run), run, _newest(run), dict[str, str]()
    if name in FOLDER:
        FOLDER[name](run, random)
    else:
        content, run = tree(run), PLACED[name](run)
    with chdir(OUTSIDE if name == ELSEWHERE else Path.cwd()):
        status, output = _resume(run)
    found = messy(output)
    if status != (name in _WINNER_LOST) or "the time budget is over with" not in output:
        found.append(f"exit status {status}, {output.splitlines()[-1:]}")
    if name in _WINNER_LOST and "finished trials whose checkpoints are gone: t000;" not in output:
        found.append("the trial without checkpoints was not named")
    found += left_behind(name, original, content)
    if planted_mark(run).exists():
        found.append("a planted pickle was loaded")
    chosen = _newest(run)
    for id, folder in newest.items():
        expected = folder.with_name(f"checkpoint_{int(folder.name[-6:]) - INTERVAL:06d}")
        expected = expected if name.startswith("checkpoint:") else folder
        if id not in chosen or chosen[id].name != expected.name:
            found.append(f"{id} would continue from {chosen.get(id)}")
    return found + _lost(run, before, name)


def _newest(run: Path) -> dict[str, Path]:
    """Trial that has not ended -> the checkpoint from which it would continue."""
    ids = [id for id, row in Results.of(run).trials.items() if row["status"] not in ENDED]
    found = {id: newest_whole(run / "trials" / id)[0] for id in ids}
    return {id: folder for id, folder in found.items() if folder is not None}


def _use_up_time(run: Path) -> None:
    file = run / RUN_SETTINGS
    record = yaml.safe_load(file.read_text(encoding="utf-8"))
    record["command"]["time_budget"] = 1.0
    file.write_text(yaml.safe_dump(record), encoding="utf-8")


def _resume(run: Path) -> tuple[int, str]:
    """Exit status and output of the command, in this process."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = main(["--resume", str(run)])
    return status, output.getvalue()


def _lost(run: Path, before: Results, name: str) -> list[str]:
    """What a run has lost of its results, and what is left where nothing should be."""
    now, found = Results.of(run), []
    for id, row in before.trials.items():
        kept = ("status", "steps", *(key for key in row if key.startswith("val/")))
        if row["status"] in ENDED and any(now.trials.get(id, {}).get(key) != row[key] for key in kept):
            found.append(f"{id} had ended and changed")
    lost = {key for key, values in before.reports.items() if now.reports.get(key) != values}
    if lost and name not in _TABLES_ONLY:
        found.append(f"lost reports: {sorted(lost)}")
    listed = Page(run / "trials").groups
    unlisted = [id for id, row in now.trials.items() if row["status"] in ENDED and id not in listed]
    found += [f"TensorBoard does not list {id}" for id in unlisted]
    if not (run / "report" / "answer.md").exists():
        found.append("no answer")
    files = (path.relative_to(run) for path in run.rglob("*") if half_written(path))
    # What is staged in a trial's folder is removed when the trial goes on.
    return found + [f"half-written: {path}" for path in files if path.parts[0] != "trials"]
