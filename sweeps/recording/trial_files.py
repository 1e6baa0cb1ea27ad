"""What follows from the record of a trial: its params.json, and what TensorBoard shows of it.

Both are written while a trial runs, and completed by the next driver if its own was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.formatting import CONFIG
from sweeps.recording.columns import TABLED, TERMS
from sweeps.recording.tables import TableRow
from sweeps.recording.tensorboard import TensorBoardTrials
from sweeps.trial_config import KIND
from trainables.common.paths import replace_file
from trainables.metrics.names import test_name


def write_params(trial: Path, label: str, hparams: Mapping[str, Any]) -> None:
    """Writes params.json into a trial's folder, which has its id as its name."""
    trial.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"id": trial.name, "label": label, **hparams}, indent=1)
    replace_file(trial / "params.json", lambda new: new.write_text(text, encoding="utf-8"))


def shown_scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """What of a report's values TensorBoard shows: the terms of the loss come from the losses of each step."""
    return {
        name: value
        for name, value in report.items()
        if name.startswith(TABLED) and not name.startswith(TERMS) and isinstance(value, int | float)
    }


def shown_metrics(row: TableRow, metrics: Sequence[str]) -> dict[str, float]:
    """Metric -> value, on validation and test images, for the HParams page."""
    shown = (*metrics, *map(test_name, metrics))
    return {name: row[name] for name in shown if row.get(name) is not None}


def catch_up(
    trials: Path,
    board: TensorBoardTrials,
    row: TableRow,
    reports_of: Callable[[str], Sequence[TableRow]],
    metrics: Sequence[str],
) -> None:
    """Writes what the files of a trial or control lack: its driver may have been killed right after it wrote the
    record, or before it uploaded the rest.

    Args:
        trials: the folder with those of all trials.
        row: of the leaderboard.
        reports_of: trial id -> its reports, by step.
    """
    id, control = row["id"], row["kind"] == "control"
    hparams: dict[str, Any] = {KIND: row["kind"]}
    if not control:
        # A column without a value is that of a condition that does not hold here.
        settings = {n.removeprefix(CONFIG): v for n, v in row.items() if n.startswith(CONFIG) and v is not None}
        hparams = {**settings, "seed": row["seed"], **hparams}
        if not _is_json(trials / id / "params.json"):
            write_params(trials / id, row["label"], hparams)
    if not board.shows_end(id, row["status"]):
        reports = [row] if control else reports_of(id)
        scalars = [(int(report.get("step") or 0), shown_scalars(report)) for report in reports]
        board.catch_up(id, hparams, scalars, shown_metrics(row, metrics), row["status"])


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True
