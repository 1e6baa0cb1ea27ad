"""The winners of several runs against each other, on the test photographs that all of them were measured on."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps import formatting
from sweeps.answering.intervals import Finding, ImageValue, compare
from sweeps.answering.recorded import recorded_answer
from sweeps.answering.verdict import Answer, finding_text
from sweeps.formatting import Row
from sweeps.planning.run_files import RUN_SETTINGS
from sweeps.planning.run_settings import made_by, read_record
from sweeps.recording.image_values import TEST, VALIDATION
from sweeps.recording.tables import read_rows
from sweeps.trial_config import CONFIRMATION
from trainables.common.errors import InputError
from trainables.images.names import photograph_of
from trainables.metrics.names import METRICS, test_name

TEST_PAIRS = "test pairs"
"""The store of the test photographs in a run's settings; its name has a hash of all that determines them."""
_PHOTOGRAPHS = ("data.", "pairs.")
_MOST_DIFFERENCES = 12


@dataclass(frozen=True)
class FinishedRun:
    """A run with a whole confirmation.

    Attributes:
        name: <space>/<run>.
        record: its settings.yaml.
        rows: of its leaderboard. per_image: of its images.
        found: its answer.
        metric: of the comparison.
    """

    name: str
    record: Mapping[str, Any]
    rows: Sequence[Row]
    per_image: Sequence[Row]
    found: Answer
    metric: str

    @property
    def winner(self) -> str:
        """Its name for readers."""
        found = self.found
        if found.winner_id in found.baseline_ids:
            return found.baseline_name
        return next(one.configuration for one in found.finalists if one.configuration not in found.missed)

    @property
    def candidates(self) -> int:
        """The number of configurations among which the confirmation chose the winner."""
        return 1 + len(self.found.finalists)

    def measured(self, metric: str, split: str) -> list[ImageValue]:
        """The winner's values of a metric, "val/psnr", on the images of a split."""
        name = test_name(metric) if split == TEST else metric
        own = {
            row["id"]: row for row in self.rows if row["id"] in self.found.winner_ids and row["kind"] == CONFIRMATION
        }
        return [
            ImageValue(self.name, own[row["id"]]["seed"], photograph_of(row["image"]), row["image"], row[name])
            for row in self.per_image
            if row["id"] in own and row.get("split", VALIDATION) == split
            if row["step"] == formatting.measured_step(own[row["id"]]) and row.get(name) is not None
        ]


def read_finished(path: Path, metric: str = "", name: str = "") -> FinishedRun:
    """A run for a comparison.

    Args:
        metric: of the comparison; by default the run's objective.
        name: for readers; by default the ends of its path, <space>/<run>.

    Raises:
        InputError: not a run, of another version, or one without a whole confirmation.
    """
    record = read_record(path)
    if missing := [name for name in ("objective", "stores") if name not in record]:
        raise InputError(f"{path / RUN_SETTINGS}: it has no {' and no '.join(missing)}{made_by(record)}")
    chosen, stores = metric or record["objective"], record["stores"]
    rows, per_image = read_rows(path / "leaderboard.parquet"), read_rows(path / "per_image.parquet")
    confirmed = [row for row in rows if row.get("kind") == CONFIRMATION]
    if not confirmed or TEST_PAIRS not in stores:
        raise InputError(f"{path}: has no confirmation, so its winner was not measured on test photographs")
    if left := [row["id"] for row in confirmed if row["status"] not in ("finished", "failed", "stopped")]:
        raise InputError(f"{path}: its confirmation has not ended ({', '.join(left)}); resume it first")
    measured = [name for name in METRICS if any(row.get(test_name(name)) is not None for row in confirmed)]
    for one in (record["objective"], chosen):
        if one not in measured:
            raise InputError(f"{path}: {one} was not measured on its test photographs; there are {', '.join(measured)}")
    found = recorded_answer(record, rows, per_image)
    if found.unconfirmed:
        raise InputError(f"{path}: {found.unconfirmed}")
    return FinishedRun(name or short_name(path), record, rows, per_image, found, chosen)


def short_name(run: Path) -> str:
    """The ends of a run's path, <space>/<run>."""
    return "/".join(run.resolve().parts[-2:])


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raises InputError if the runs were not measured on the same test images, or the metric is not the same."""
    first = runs[0]
    for other in runs[1:]:
        if other.metric != first.metric:
            raise InputError(
                f"{first.name} has the objective {first.metric} and {other.name} {other.metric}; "
                "say which metric to compare with --metric"
            )
        borders = [(run.record.get("trial") or {}).get("metrics.border", 0) for run in (first, other)]
        if borders[0] != borders[1]:
            raise InputError(
                f"{other.name} was not measured as {first.name}: PSNR and SSIM leave out metrics.border={borders[1]} "
                f"and {borders[0]} pixels at each edge"
            )
        stores = [run.record["stores"][TEST_PAIRS] for run in (first, other)]
        images = [{row["image"] for row in run.per_image if row.get("split") == TEST} for run in (first, other)]
        if stores[0] != stores[1] or images[0] != images[1]:
            different = [name for name in _differences([first, other]) if name.startswith(_PHOTOGRAPHS)]
            reason = f"other {', '.join(different)}" if different else "other photographs, or another version"
            raise InputError(f"{other.name} was not measured on the test images of {first.name}: {reason}")


def compare_runs(runs: Sequence[FinishedRun]) -> list[Finding]:
    """Every other run's winner against the first one's.

    The correction counts every pair of configurations that could have become the two winners.
    """
    first, *others = runs
    metric = first.metric
    test, validation = ([m for run in runs for m in run.measured(metric, split)] for split in (TEST, VALIDATION))
    family = first.candidates * sum(run.candidates for run in others)
    larger = formatting.is_larger_better(metric)
    return list(compare(test, first.name, [run.name for run in others], larger, validation, family=family))


def comparison_text(runs: Sequence[FinishedRun], findings: Sequence[Finding], width: int) -> str:
    """The comparison for a terminal: a table of the winners, a sentence per run, and how the runs differ."""
    metric = runs[0].metric
    metrics = [metric, *(name for name in METRICS if name != metric)]
    means: dict[str, list[str]] = {}
    for name in metrics:
        values = [_mean([m.value for m in run.measured(name, TEST)]) for run in runs]
        if any(value is not None for value in values):
            arrow = "↑" if formatting.is_larger_better(name) else "↓"
            means[f"{formatting.metric_title(name)} {arrow}"] = [
                formatting.metric_text(name, value) for value in values
            ]
    columns = {
        "run": [run.name for run in runs],
        "winner": [run.winner for run in runs],
        "steps": [str(run.found.steps) for run in runs],
        **means,
    }
    sizes = {title: max(len(title), *map(len, cells)) for title, cells in columns.items()}
    lines = ["  ".join(title.ljust(size) for title, size in sizes.items())]
    lines += ["  ".join(columns[t][k].ljust(size) for t, size in sizes.items()) for k in range(len(runs))]
    lines = [line.rstrip() for line in lines]
    sentences = [f"Against {runs[0].name}, on the test photographs; positive is better:"]
    sentences += [finding_text(metric, finding) for finding in findings]
    different = [
        f"{name} {' / '.join(formatting.setting_text(value) or '–' for value in values)}"
        for name, values in _differences(runs).items()
    ]
    if different:
        more = f" and {len(different) - _MOST_DIFFERENCES} more" if len(different) > _MOST_DIFFERENCES else ""
        sentences.append(f"The runs' settings differ in {', '.join(different[:_MOST_DIFFERENCES])}{more}.")
    wrapped = (textwrap.fill(sentence, width, break_long_words=False) for sentence in sentences)
    return "\n".join([*lines, "", *wrapped])


def _differences(runs: Sequence[FinishedRun]) -> dict[str, list[Any]]:
    """Dotted name -> its values in the baselines of the runs, of the settings that differ."""
    trials = [dict(run.record.get("trial") or {}) for run in runs]
    names = dict.fromkeys(name for trial in trials for name in trial)
    values = {name: [trial.get(name) for trial in trials] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
