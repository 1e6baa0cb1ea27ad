"""Prepared data by hand: `python -m trainables.data prepare|inspect|verify|prune`.

A sweep prepares its data by itself. Use this to prepare in advance, to inspect the data, and to clean up. The commands
are imported after the flags have been checked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trainables.common.command import command_flags, exit_statuses, run_command
from trainables.common.flags import Flags, number, whole
from trainables.images.sources.notices import shown_plainly
from trainables.settings.methods import METHODS
from trainables.settings.presets import PRESETS

PROG = "python -m trainables.data"
DESCRIPTION = "Makes, shows, checks and deletes prepared data. A sweep prepares what it needs by itself."
EPILOG = f"""\
examples:
  python -m trainables.data prepare --preset sinsr-stage1 --data ~/photos --store /data/store --dry-run
  python -m trainables.data prepare --preset sinsr-stage1 --data ~/photos --store /data/store
  python -m trainables.data inspect /data/store
  python -m trainables.data inspect /data/store/pairs-train-0123456789ab
  python -m trainables.data verify /data/store
  python -m trainables.data prune /data/store --older-than 30 --keep 200
{exit_statuses("a store is damaged or was not deleted")}
"""


def parser(prog: str = PROG) -> Flags:
    flags = command_flags(prog, DESCRIPTION, EPILOG.replace(PROG, prog))
    commands = flags.add_subparsers(dest="command", required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", allow_abbrev=False, help="prepare the data of a method's trials")
    prepare.add_argument("--preset", default="sample", help=f"one of {', '.join(PRESETS)} (sample)")
    prepare.add_argument("--method", default="", help=f"one of {', '.join(METHODS)} (the preset's)")
    prepare.add_argument("--data", default="", metavar="SOURCE", help="a folder, .txt, .parquet or URI (the preset's)")
    prepare.add_argument("--data-input", default="", metavar="DIR", help="degraded images of pairs, instead of --data")
    prepare.add_argument("--data-target", default="", metavar="DIR", help="their targets, under the same file names")
    prepare.add_argument("--store", default="results/store", metavar="DIR", help="a folder or URI (results/store)")
    prepare.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    prepare.add_argument("--cpus", type=whole(0), default=0, metavar="N", help="number of processes (all usable CPUs)")
    prepare.add_argument("--gpus", type=whole(0), default=0, metavar="N", help="how many of them use a GPU (0)")
    prepare.add_argument("--address", default="", metavar="ADDRESS", help="a running Ray cluster, such as auto")
    prepare.add_argument("--dry-run", action="store_true", help="print the disk space and time it needs, and stop")

    inspect = commands.add_parser(
        "inspect", allow_abbrev=False, help="show a store and a sheet of its pairs, or all stores of a folder"
    )
    inspect.add_argument("path", metavar="STORE", help="a store, or a folder of stores")
    inspect.add_argument("--sheet", metavar="PNG", help="file of the sheet (NAME-OF-STORE.png)")

    verify = commands.add_parser("verify", allow_abbrev=False, help="compare the content of stores with their hashes")
    verify.add_argument("paths", nargs="+", metavar="STORE", help="stores, or folders of stores")

    prune = commands.add_parser(
        "prune", allow_abbrev=False, help="list stores by age and size, and delete some of them"
    )
    prune.add_argument("path", metavar="ROOT", help="a folder of stores")
    prune.add_argument("--older-than", type=number(0), metavar="DAYS", help="delete stores unused for longer")
    prune.add_argument(
        "--keep",
        type=number(0),
        metavar="GB",
        help="delete the least recently used until so many are left",
    )
    prune.add_argument("--yes", action="store_true", help="delete without asking")
    return flags


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Runs the command line; returns the exit status."""

    def work(flags: argparse.Namespace) -> int:
        from trainables.data import commands

        with shown_plainly():
            return int(getattr(commands, f"{flags.command}_command")(flags))

    return run_command(parser(prog), arguments, work, "finished shards are kept; run the same command to resume")


if __name__ == "__main__":
    raise SystemExit(main())
