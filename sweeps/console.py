"""The installed command `restoration-sweeps run|compare|data|restore|export|prompts`.

Each command is imported when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from trainables.common.command import ExitStatus, command_flags, exit_statuses, run_command, starting
from trainables.common.errors import InputError
from trainables.common.flags import Flags
from trainables.common.version import PROJECT

DESCRIPTION = "Hyperparameter sweeps on Ray for diffusion-based image restoration."
EPILOG = f"""\
{PROJECT} COMMAND --help shows the flags of a command.
Completion in bash: eval "$({PROJECT} --print-completion bash)"
{exit_statuses("part of the work failed")}
"""
SHELLS = ("bash", "zsh", "tcsh", "fish")


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: module with `main(arguments, prog)`, which returns an exit status, and `parser(prog)`. It is imported
            only when needed.
    """

    module: str
    help: str


COMMANDS = {
    "run": Command("sweeps.command_line", "run a sweep; same as python run_sweep.py"),
    "compare": Command("sweeps.compare", "compare the winners of several runs on the same photographs"),
    "data": Command("trainables.data.__main__", "prepare, inspect, verify and delete data"),
    "restore": Command("trainables.restore", "restore pictures with a finished trial"),
    "export": Command("trainables.export", "export a finished latent_diffusion to diffusers' layout"),
    "prompts": Command("trainables.prompts", "encode prompts with a base's text encoder"),
}
"""To add a subcommand, add one entry here."""


def parser(prog: str = PROJECT) -> Flags:
    """The flags before a command. The flags of each command are in its module."""
    flags = command_flags(prog, DESCRIPTION, EPILOG)
    flags.add_argument("--print-completion", choices=SHELLS, help="print the script that completes flags in this shell")
    commands = flags.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        name = given[0]
        with starting():
            module = _module(name)
        status: int = module.main(given[1:], f"{PROJECT} {name}")
        return status
    return run_command(parser(), given, _without_command, "nothing was done")


def _module(name: str) -> Any:
    return importlib.import_module(COMMANDS[name].module)


def _without_command(flags: argparse.Namespace) -> int:
    if not flags.print_completion:
        raise InputError(f"COMMAND is missing; expected one of {', '.join(COMMANDS)}; see --help")
    from sweeps.completion import completion_script

    modules = {name: command.module for name, command in COMMANDS.items()}
    print(completion_script(PROJECT, parser(), modules, flags.print_completion))
    return ExitStatus.DONE


if __name__ == "__main__":
    sys.exit(main())
