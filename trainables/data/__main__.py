"""Prepared data by hand: `python -m trainables.data prepare|inspect|verify|prune`.

A sweep prepares its data by itself. Use this to prepare in advance, to inspect the data, and to clean up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trainables.common.errors import INTERRUPTED, InputError
from trainables.common.flags import Flags, number, whole
from trainables.images.sources.notices import shown_plainly
from trainables.settings.methods import METHODS
from trainables.settings.presets import PRESETS

EPILOG = """\
examples:
  python -m trainables.data prepare --preset sinsr-stage1 --data ~/photos --store /data/store --dry-run
  python -m trainables.data prepare --preset sinsr-stage1 --data ~/photos --store /data/store
  python -m trainables.data inspect /data/store
  python -m trainables.data inspect /data/store/pairs-train-0123456789ab
  python -m trainables.data verify /data/store
  python -m trainables.data prune /data/store --older-than 30 --keep 200
exit status: 0 done, 1 a store is damaged or was not deleted, 2 invalid input, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    flags = Flags(
        prog="python -m trainables.data",
        description=__doc__.partition("\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = flags.add_subparsers(dest="command", required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", allow_abbrev=False, help="prepare the data of a method's trials")
    prepare.add_argument("--preset", default="sample", help=f"one of {', '.join(PRESETS)} (sample)")
    prepare.add_argument("--method", default="", help=f"one of {', '.join(METHODS)} (the preset's)")
    prepare.add_argument("--data", default="", metavar="SOURCE", help="a folder, .txt, .parquet or URI (the preset's)")
    prepare.add_argument("--store", default="results/store", metavar="DIR", help="a folder or URI (results/store)")
    prepare.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    prepare.add_argument("--cpus", type=whole(0), default=0, metavar="N", help="number of processes (all cores)")
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
    prune.add_argument("--keep", type=number(0), metavar="GB", help="delete the longest unused until the rest fits")
    prune.add_argument("--yes", action="store_true", help="delete without asking")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    prog = parser().prog
    try:
        flags = parser().parse_args(arguments)
        prog += f" {flags.command}"
        from trainables.data import commands

        with shown_plainly():
            return int(getattr(commands, flags.command)(flags))
    except InputError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return InputError.exit_status
    except KeyboardInterrupt:
        print("interrupted; finished shards are kept; run the same command to resume", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
