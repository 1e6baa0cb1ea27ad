"""Shared parts of all command lines: exit statuses, errors, Ctrl-C and `--version`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

from trainables.common.errors import CannotRun, InputError, UsageError
from trainables.common.flags import Flags, Layout
from trainables.common.interrupts import interrupts_kept, note_interrupt
from trainables.common.output import flush_output, keep_output_open
from trainables.common.temporary import full_temporary_named
from trainables.common.version import PROJECT, VERSION


class ExitStatus(IntEnum):
    """Exit status of a command line. Unexpected exceptions keep their traceback and give 1, as in Python.

    If the reader of the output stops early (`| head`), the work still completes, with its own exit status.
    """

    DONE = 0
    FAILED = 1
    """Part of the work failed, or the output could not be written."""
    INVALID_INPUT = 2
    INTERRUPTED = 130
    """Ctrl-C, with the number that shells use; also SIGTERM, as from SLURM, systemd, `docker stop` and `timeout`, and
    SIGHUP, as from a closed terminal."""


def exit_statuses(failed: str = "") -> str:
    """The line of `--help` about exit statuses.

    Args:
        failed: meaning of status 1; empty for commands that cannot fail in part.
    """
    meanings = {
        ExitStatus.DONE: "done",
        ExitStatus.FAILED: failed,
        ExitStatus.INVALID_INPUT: "invalid input",
        ExitStatus.INTERRUPTED: "interrupted",
    }
    return f"exit status: {', '.join(f'{status:d} {meaning}' for status, meaning in meanings.items() if meaning)}"


def command_flags(prog: str, description: str, epilog: str = "") -> Flags:
    """A parser with only `--help` and `--version`."""
    flags = Flags(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=Layout,
        allow_abbrev=False,
    )
    flags.add_argument("--version", action="version", version=f"{PROJECT} {VERSION}", help="print the version and stop")
    return flags


@contextmanager
def starting() -> Iterator[None]:
    """Around the imports of a command line: Ctrl-C and SIGTERM end the process with one line and status 130."""
    end_on_sigterm()
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: nothing was started", file=sys.stderr)
        raise SystemExit(ExitStatus.INTERRUPTED) from None


def end_on_sigterm() -> None:
    """Makes SIGTERM do what Ctrl-C does, once; and SIGHUP, which a closed terminal or ssh sends, unless it is
    ignored, as under `nohup`. Only the main thread can set handlers; elsewhere nothing changes.
    """

    def interrupt(number: int, frame: object) -> None:
        for one in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)  # the end is under way
        note_interrupt(number)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, interrupt)


def run_command(
    parser: Flags,
    arguments: Sequence[str] | None,
    work: Callable[[argparse.Namespace], int],
    interrupted: str,
) -> int:
    """Parses the arguments and runs `work`; returns the exit status.

    An `InputError` or a `CannotRun` becomes one line on standard error. Errors of the output do not stop the work, see
    `keep_output_open`.

    Args:
        arguments: the command's arguments; None for those of the process.
        work: takes the flags, returns an exit status. It may raise `KeyboardInterrupt(text)` to report its progress.
        interrupted: message after Ctrl-C without such a text.
    """
    keep_output_open()
    end_on_sigterm()
    prog = parser.prog
    try:
        flags = parser.parse_args(arguments)
        prog = " ".join([prog, *filter(None, [getattr(flags, "command", "")])])
        with interrupts_kept(), full_temporary_named():
            status = work(flags)
    except SystemExit as ended:  # --help and --version
        if ended.code:
            raise
        status = ExitStatus.DONE
    except InputError as error:
        prog = error.prog if isinstance(error, UsageError) else prog
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = ExitStatus.INVALID_INPUT
    except CannotRun as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = ExitStatus.FAILED
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {interrupt if interrupt.args else interrupted}", file=sys.stderr)
        status = ExitStatus.INTERRUPTED
    finally:
        troubles = flush_output()
        if trouble := troubles.get("stdout"):
            print(f"{prog}: standard output could not be written ({trouble.strerror})", file=sys.stderr)
    return status or (ExitStatus.FAILED if troubles else ExitStatus.DONE)
