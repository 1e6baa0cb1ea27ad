"""The fault injector: `python -m tests.faults --runs 100 --seed 0 --table docs/reliability.md`.

Each run has one fault, drawn with the seed. It is a real sweep from the real command line; afterwards it is resumed
and compared with an undisturbed one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.inject import Bench, Outcome, all_faults


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--runs", type=int, default=len(all_faults()), help="number of faults (each kind once)")
    flags.add_argument("--seed", type=int, default=0, help="of the faults, their places and moments (0)")
    flags.add_argument("--only", default="", metavar="A,B", help="only faults whose names contain one of these texts")
    flags.add_argument("--work", type=Path, default=None, metavar="DIR", help="keep all runs in this folder")
    flags.add_argument("--table", type=Path, default=None, metavar="FILE", help="write the table of outcomes here")
    given = flags.parse_args()
    names = [name for name in all_faults() if any(text in name for text in given.only.split(","))]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        bench = Bench(given.work or Path(temporary), given.seed)
        for k in range(given.runs):
            # Every kind as often as every other, in a new order each time.
            order = random.Random(given.seed + k // len(names)).sample(names, len(names))
            name = order[k % len(names)]
            started = time.monotonic()
            outcome = bench.run(name, random.Random(f"{given.seed} {k}"))
            outcomes.append(outcome)
            seconds = time.monotonic() - started
            print(f"{k + 1:4} {seconds:5.0f} s  {name}: {'; '.join(outcome.problems) or 'survived'}", flush=True)
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
