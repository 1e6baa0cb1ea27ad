"""The answers of many sweeps as a page: `python -m sweeps.answering.summary results docs/answers.md`.

A page that exists is brought up to date: the row and the section of each space with a run in `results` are written
anew, everything else stays. A paragraph of a section that begins with **Reading.** is a person's, and stays too.

In the folder named like the page:

<space>.jpg     test images: input, bicubic, baseline, winner or best finalist, target
<space>.csv     the leaderboard
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Container, Sequence
from pathlib import Path

import search_spaces
from sweeps.answering.between_runs import FinishedRun, read_finished
from sweeps.answering.comparison import baseline_trials
from sweeps.answering.pictures import side_by_side
from sweeps.answering.verdict import Answer, finding_of_the_input, named_finding
from sweeps.answering.view import View
from sweeps.formatting import metric_text, metric_title, metric_unit
from sweeps.planning.continuing import spent_seconds
from sweeps.recording.tables import RunTables
from trainables.common.errors import InputError
from trainables.common.paths import replace_file

ANSWER = Path("report") / "answer.md"
_READING = "**Reading.**"
_HEADER = (
    "| space and question | answer | difference, positive is better | interval | verdict | winner against its input "
    "| minutes |\n|---|---|---|---|---|---|---|"
)
_AGAINST_INPUT = {"better": "worse", "worse": "proven better", "not distinguishable": "not proven"}
"""Verdict about the input against the winner -> the winner against the input."""


def newest_runs(results: Path) -> dict[str, Path]:
    """Space -> its newest run that has an answer."""
    runs = {name: sorted((results / name).glob(f"*/{ANSWER}")) for name in search_spaces.names()}
    return {name: found[-1].parent.parent for name, found in runs.items() if found}


def updated(page: str, results: Path, folder: Path) -> str:
    """The page in Markdown, with the answers of these runs: a table with a row per space, then the sentences and
    pictures of each.

    Args:
        page: the page so far, or "". In a section that is about no space, list items that begin with an answered space
            are removed.
        folder: for pictures and tables; created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head, *parts = page.strip().split("\n\n## ") if page.strip() else [_HEADER]
    rows = {line.split("`")[1]: line for line in head.splitlines() if line.startswith("| [`")}
    sections = {part.partition("\n")[0]: part for part in parts}
    for name, path in newest_runs(results).items():
        try:
            run, recorded = read_finished(path), RunTables(path).load().drivers.spent
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        readings = [text for text in sections.get(name, "").split("\n\n") if text.startswith(_READING)]
        title, _, text = (path / ANSWER).read_text(encoding="utf-8").strip().partition("\n")
        question = title.removeprefix("# ")
        rows[name] = table_row(name, question, run, spent_seconds(run.rows, recorded, concurrent=1))
        sections[name] = _section(name, question, text, path, run, folder, readings)
    before, _, after = head.partition(_HEADER)
    others = [line for line in after.strip().splitlines() if not line.startswith("| [`")]
    asked = [sections.pop(name) for name in search_spaces.names() if name in sections]
    kept = [_without(rows, part) for part in sections.values()]
    table = "\n".join([_HEADER, *(rows[name] for name in sorted(rows)), *others])
    return "\n\n## ".join([f"{before}{table}".strip(), *asked, *kept]) + "\n"


def _without(answered: Container[str], section: str) -> str:
    """The section without its list items about answered spaces."""
    lines = section.splitlines()
    return "\n".join(line for line in lines if not (line.startswith("- `") and line.split("`")[1] in answered))


def table_row(name: str, question: str, run: FinishedRun, seconds: float) -> str:
    """A space's row of the table.

    Args:
        question: of the space, in words.
        seconds: that the sweep's commands took.
    """
    found = run.found
    finding, metric = named_finding(found), found.metric
    interval = finding.interval
    difference, span = "–", "–"
    if interval is not None:
        mean, low, high = (metric_text(metric, v, sign=True) for v in (interval.mean, interval.low, interval.high))
        difference = f"{mean}{metric_unit(metric)} {metric_title(metric)}"
        span = f"{low} to {high} ({100 * interval.level:.3g} %)"
    cells = (f"[`{name}`](#{name}): {question}", _short_answer(found), difference, span, finding.verdict)
    return f"| {' | '.join(cells)} | {_against_input(found)} | {seconds / 60:.0f} |"


def _short_answer(found: Answer) -> str:
    """The first sentence of the answer without its numbers."""
    finding = named_finding(found)
    named, base = finding.configuration, found.baseline_name
    if named in found.missed:
        return f"no finalist that was compared meets {' and '.join(found.constraints)}"
    if finding.verdict == "better":
        return f"{named} is better than {base}"
    if finding.verdict == "worse":
        return f"no finalist is better than {base}; the best one is {named}"
    return f"{named} is not distinguishable from {base}, which stays the choice"


def _against_input(found: Answer) -> str:
    """Whether the winner, whose weights are kept, is better than its input, which no network has changed."""
    finding = finding_of_the_input(found)
    return f"{found.winner_name}: {_AGAINST_INPUT[finding.verdict]}" if finding else "–"


def _section(
    name: str, question: str, text: str, path: Path, run: FinishedRun, folder: Path, readings: Sequence[str]
) -> str:
    """The section of a space: question, pictures, readings, and the answer's text without its table."""
    shutil.copyfile(path / "leaderboard.csv", folder / f"{name}.csv")
    said = text[: text.index("\n|")] if "\n|" in text else text
    parts = [name, f"**{question}**"]
    sheet = side_by_side(path, View.of(run.rows, run.found), run.per_image, baseline_trials(run.rows))
    if sheet:
        sheet.save(folder / f"{name}.jpg", quality=90)
        alt = f"Test images of {name}: {', '.join(('input', 'baseline', 'winner or best finalist', 'target'))}"
        parts.append(f"![{alt}]({folder.name}/{name}.jpg)")
    parts += [*readings, said.strip(), f"[All trials and controls]({folder.name}/{name}.csv)"]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of runs")
    parser.add_argument("page", type=Path, help="Markdown; pictures and tables go to the folder of this name beside it")
    flags = parser.parse_args()
    before = flags.page.read_text(encoding="utf-8") if flags.page.exists() else ""
    page = updated(before, flags.results, flags.page.with_suffix(""))
    replace_file(flags.page, lambda path: path.write_text(page, encoding="utf-8"))


if __name__ == "__main__":
    main()
