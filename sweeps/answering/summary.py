"""The answers of many sweeps on one page: `python -m sweeps.answering.summary results > answers.md`."""

from __future__ import annotations

import argparse
from pathlib import Path

import search_spaces
from sweeps.recording.tables import read_rows

ANSWER = Path("report") / "answer.md"


def newest_runs(results: Path) -> dict[str, Path]:
    """Space -> its newest run that has an answer."""
    runs = {name: sorted((results / name).glob(f"*/{ANSWER}")) for name in search_spaces.names()}
    return {name: found[-1].parent.parent for name, found in runs.items() if found}


def page(results: Path) -> str:
    """Markdown: a table with a line per answered question, then every answer with its leaderboard."""
    lines = ["| space | answer | trials | minutes of all trials |", "|---|---|---|---|"]
    sections = []
    for name, run in newest_runs(results).items():
        title, _, text = (run / ANSWER).read_text(encoding="utf-8").strip().partition("\n")
        trials = [row for row in read_rows(run / "leaderboard.parquet") if row["kind"] != "control"]
        busy = sum(row["busy_seconds"] or 0 for row in trials) / 60
        verdict = text.strip().splitlines()[0]
        lines.append(f"| [`{name}`](#{name}) | {verdict} | {len(trials)} | {busy:.0f} |")
        sections.append(f"## {name}\n\n**{title.removeprefix('# ')}**\n\n{text.strip()}")
    return "\n\n".join(["\n".join(lines), *sections]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", default="results", type=Path, help="folder of runs (results)")
    print(page(parser.parse_args().results), end="")


if __name__ == "__main__":
    main()
