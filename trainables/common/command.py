"""What all command lines have in common: exit statuses, how errors and Ctrl-C look, `--version`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum

from trainables.common.errors import InputError, UsageError
from trainables.common.flags import Flags
from trainables.common.output import flush_output, keep_output_open
from trainables.common.version import PROJECT, VERSION


class ExitStatus(IntEnum):
    """What a command line ends with. An exception that is a defect keeps its traceback and ends with 1, as Python does.

    A reader that leaves (`| head`) changes nothing: the work is finished, and the status is the work's own.
    """

    DONE = 0
    FAILED = 1
    """Some of the work could not be done, or what it printed could not be written."""
    INVALID_INPUT = 2
    INTERRUPTED = 130
    """By Ctrl-C; the number that shells use."""


def exit_statuses(failed: str = "") -> str:
    """The line of `--help` about them.

    Args:
        failed: what status 1 means here; empty where the work is done as a whole or not at all.
    """
    meanings = {
        ExitStatus.DONE: "done",
        ExitStatus.FAILED: failed,
        ExitStatus.INVALID_INPUT: "invalid input",
        ExitStatus.INTERRUPTED: "interrupted",
    }
    return f"exit status: {', '.join(f'{status:d} {meaning}' for status, meaning in meanings.items() if meaning)}"


def command_flags(prog: str, description: str, epilog: str = "") -> Flags:
    """An empty parser of a command line that knows `--version`."""
    flags = Flags(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--version", action="version", version=f"{PROJECT} {VERSION}", help="print it and stop")
    return flags


def run_command(
    parser: Flags,
    arguments: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
    interrupted: str,
) -> int:
    """Parses the arguments and does the work; returns the exit status.

    An `InputError` becomes one line on standard error. What the work prints never stops it, see `keep_output_open`.

    Args:
        arguments: those of the process where None.
        work: takes the flags, returns an exit status. To say how far it came it may raise `KeyboardInterrupt(text)`.
        interrupted: what is said after Ctrl-C otherwise.
    """
    keep_output_open()
    prog = parser.prog
    try:
        flags = parser.parse_args(arguments)
        prog = " ".join([prog, *filter(None, [getattr(flags, "command", "")])])
        status = work(flags)
    except SystemExit as ended:  # --help and --version
        if ended.code:
            raise
        status = ExitStatus.DONE
    except InputError as error:
        prog = error.prog if isinstance(error, UsageError) else prog
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = ExitStatus.INVALID_INPUT
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {interrupt if interrupt.args else interrupted}", file=sys.stderr)
        status = ExitStatus.INTERRUPTED
    finally:
        troubles = flush_output()
        if trouble := troubles.get("stdout"):
            print(f"{prog}: standard output could not be written ({trouble.strerror})", file=sys.stderr)
    return status or (ExitStatus.FAILED if troubles else ExitStatus.DONE)
