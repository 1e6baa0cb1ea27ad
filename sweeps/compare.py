"""The command `restoration-sweeps compare`: the winners of several runs against each other.

What compares them is imported after the flags have been checked.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from sweeps.planning.run_bucket import run_to_read
from trainables.common.command import ExitStatus, command_flags, exit_statuses, run_command
from trainables.common.errors import InputError
from trainables.common.flags import Flags
from trainables.metrics.names import METRICS, PYIQA

PROG = "python -m sweeps.compare"
DESCRIPTION = "Compares the winners of several runs, on the test photographs that all of them were measured on."
_EPILOG = f"""\
example:
  {PROG} results/lora/20261121-093000 results/lora/20261122-101500
{exit_statuses()}
"""
_WIDTH = 110


def parser(prog: str = PROG) -> Flags:
    """The flags of the command."""
    flags = command_flags(prog, DESCRIPTION, _EPILOG.replace(PROG, prog))
    flags.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders or URIs of two or more runs; the first is the reference"
    )
    flags.add_argument("--metric", default="", metavar="METRIC", help="metric to compare (the objective of the runs)")
    return flags


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(parser(prog), sys.argv[1:] if arguments is None else arguments, _run, "nothing was changed")


def _run(flags: argparse.Namespace) -> int:
    paths = [run_to_read("RUN", run) for run in flags.runs]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise InputError(f"RUN {', '.join(flags.runs)}: expected two or more different runs")
    metric = flags.metric and f"val/{flags.metric.removeprefix('val/').removeprefix('test/')}"
    if metric and metric not in METRICS and not metric.startswith(PYIQA):  # those are known to the runs
        raise InputError(
            f"--metric {flags.metric}: expected one of {', '.join(n.removeprefix('val/') for n in METRICS)}"
        )
    from sweeps.answering.between_runs import check_comparable, compare_runs, comparison_text, read_finished, short_name

    short = Counter(map(short_name, paths))  # equal for runs of the same second in other results folders
    runs = [read_finished(path, metric, "" if short[short_name(path)] == 1 else str(path)) for path in paths]
    check_comparable(runs)
    print(comparison_text(runs, compare_runs(runs), _WIDTH))
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
