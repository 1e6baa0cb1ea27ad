"""The answers of many sweeps as a page: `python -m sweeps.answering.summary results docs/answers > answers.md`.

<space>.jpg     test images: input, bicubic, baseline, winner, target
<space>.csv     the leaderboard
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import search_spaces
from sweeps.answering.between_runs import FinishedRun, read_finished
from sweeps.answering.comparison import baseline_trials
from sweeps.answering.pictures import side_by_side
from sweeps.answering.verdict import named_finding
from sweeps.answering.view import View
from sweeps.formatting import metric_text, metric_title, metric_unit
from trainables.common.errors import InputError

ANSWER = Path("report") / "answer.md"
_HEADER = (
    "| space | best finalist | against | difference, positive is better | interval | verdict | minutes |\n"
    "|---|---|---|---|---|---|---|"
)


def newest_runs(results: Path) -> dict[str, Path]:
    """Space -> its newest run that has an answer."""
    runs = {name: sorted((results / name).glob(f"*/{ANSWER}")) for name in search_spaces.names()}
    return {name: found[-1].parent.parent for name, found in runs.items() if found}


def page(results: Path, folder: Path) -> str:
    """Markdown: a table with a line per answered question, then the sentences and pictures of each.

    Args:
        folder: for pictures and tables; created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, sections = [_HEADER], []
    for name, path in newest_runs(results).items():
        try:
            run = read_finished(path)
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        lines.append(_line(name, run))
        sections.append(_section(name, path, run, folder))
    return "\n\n".join(["\n".join(lines), *sections]) + "\n"


def _line(name: str, run: FinishedRun) -> str:
    found = run.found
    finding, metric = named_finding(found), found.metric
    busy = sum(row["busy_seconds"] or 0 for row in run.rows if row["kind"] != "control") / 60
    interval = finding.interval
    difference, span = "–", "–"
    if interval is not None:
        mean, low, high = (metric_text(metric, v, sign=True) for v in (interval.mean, interval.low, interval.high))
        difference = f"{mean}{metric_unit(metric)} {metric_title(metric)}"
        span = f"{low} to {high} ({100 * interval.level:.3g} %)"
    cells = (f"[`{name}`](#{name})", finding.configuration, found.baseline_name, difference, span, finding.verdict)
    return f"| {' | '.join(cells)} | {busy:.0f} |"


def _section(name: str, path: Path, run: FinishedRun, folder: Path) -> str:
    shutil.copyfile(path / "leaderboard.csv", folder / f"{name}.csv")
    title, _, text = (path / ANSWER).read_text(encoding="utf-8").strip().partition("\n")
    said = text[: text.index("\n|")] if "\n|" in text else text  # without the table
    parts = [f"## {name}", f"**{title.removeprefix('# ')}**"]
    sheet = side_by_side(path, View.of(run.rows, run.found), run.per_image, baseline_trials(run.rows))
    if sheet:
        sheet.save(folder / f"{name}.jpg", quality=90)
        alt = f"Test images of {name}: {', '.join(('input', 'baseline', 'winner', 'target'))}"
        parts.append(f"![{alt}]({folder.name}/{name}.jpg)")
    parts += [said.strip(), f"[All trials and controls]({folder.name}/{name}.csv)"]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of runs")
    parser.add_argument("folder", type=Path, help="for pictures and tables, next to the page")
    flags = parser.parse_args()
    print(page(flags.results, flags.folder), end="")


if __name__ == "__main__":
    main()
