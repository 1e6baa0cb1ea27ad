"""The fault injector: `python -m tests.faults --runs 100 --seed 0 --table table.md`.

Each run has one fault, drawn with the seed. It is a real sweep from the real command line; afterwards it is resumed
and compared with an undisturbed one. With `--work DIR` the outcomes are kept in DIR, and another call goes on from
them: the faults with the fewest runs come first, and the table counts all.

`--reading` leaves out the training: see `tests.faults.reading`. It tries faults of a run's folder in a second each.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.faults import reading
from tests.faults.inject import Bench, Outcome, all_faults


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--runs", type=int, default=len(all_faults()), help="number of faults (each kind once)")
    flags.add_argument("--reading", action="store_true", help="no trial trains: a resumed driver only reads the run")
    flags.add_argument("--seed", type=int, default=0, help="of the faults, their places and moments (0)")
    flags.add_argument("--only", default="", metavar="A,B", help="only faults whose names contain one of these texts")
    flags.add_argument("--work", type=Path, default=None, metavar="DIR", help="keep all runs in this folder")
    flags.add_argument("--minutes", type=float, default=float("inf"), help="start no run after so many minutes")
    flags.add_argument("--table", type=Path, default=None, metavar="FILE", help="write the table of outcomes here")
    given = flags.parse_args()
    every = reading.ALL if given.reading else all_faults()
    names = [name for name in every if any(text in name for text in given.only.split(","))]
    if not names:
        flags.error(f"--only {given.only}: no such fault; there are {', '.join(every)}")
    with tempfile.TemporaryDirectory(prefix="f-") as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench, record = Bench(work, given.seed), work / f"{'reading' if given.reading else 'outcomes'}.jsonl"
        outcomes = [Outcome(**json.loads(line)) for line in record.open(encoding="utf-8")] if record.exists() else []
        tried = Counter(outcome.fault for outcome in outcomes)
        started = time.monotonic()
        for _ in range(given.runs):
            if time.monotonic() - started > given.minutes * 60:
                break
            # Every kind as often as every other, in a new order each time.
            least = min(tried[name] for name in names)
            name = random.Random(f"{given.seed} {least}").choice([name for name in names if tried[name] == least])
            began = time.monotonic()
            draw = random.Random(f"{given.seed} {name} {tried[name]}")
            outcome = bench.read(name, draw) if given.reading else bench.run(name, draw)
            tried[name] += 1
            outcomes.append(outcome)
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            seconds = time.monotonic() - began
            print(
                f"{len(outcomes):4} {seconds:5.0f} s  {name}: {'; '.join(outcome.problems) or 'survived'}", flush=True
            )
            if given.table:
                given.table.write_text(table(outcomes, given.seed), encoding="utf-8")
    survived = sum(not outcome.problems for outcome in outcomes)
    print(f"{survived} of {len(outcomes)} survived")
    return int(survived < len(outcomes))


def table(outcomes: list[Outcome], seed: int) -> str:
    """The outcomes by fault, in Markdown."""
    tried = Counter(outcome.fault for outcome in outcomes)
    survived = Counter(outcome.fault for outcome in outcomes if not outcome.problems)
    lines = ["| fault | runs | survived |", "|---|---|---|"]
    lines += [f"| {name} | {tried[name]} | {survived[name]} |" for name in all_faults() if tried[name]]
    lines.append(f"| all, seed {seed} | {tried.total()} | {survived.total()} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
