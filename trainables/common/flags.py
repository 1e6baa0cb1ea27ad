"""Parsers of command lines with one-line errors that name the accepted values."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from trainables.common.errors import UsageError


class Flags(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` instead of printing its usage and exiting. It takes no flag
    with an empty value, such as a shell's variable that is not set: the default would be used silently.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        for before, text in zip(["", *given], given, strict=False):
            flag = before if not text else text[:-1] if text.endswith("=") else ""
            if re.fullmatch("--[a-z-]+", flag):
                raise UsageError(f"{flag}: the value is empty; give one, or leave the flag out", self.prog)
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        of_a_type = re.match(r"argument (\S+): (.*: expected .*)", message)
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        nearest = difflib.get_close_matches(unknown[1], self._option_string_actions, cutoff=0.7) if unknown else []
        if unknown and nearest:
            raise UsageError(f"{unknown[1]}: no such flag; nearest: {', '.join(nearest)}", self.prog)
        text = " ".join(of_a_type.groups()) if of_a_type else f"{message.removeprefix('argument ')}; see --help"
        raise UsageError(text, self.prog)


class Layout(argparse.HelpFormatter):
    """`--help` within the terminal's width, or 80 columns without a terminal. Lines of the epilog stay lines; an
    indented one is a command, which a shell still reads after the break.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(" "):
                start = line[: -len(line.lstrip())]
                glued = re.sub(r"(--\S+) (?=[^-])", "\\1\0", line.lstrip())  # a flag stays with its value
                broken = hanging(glued, start, f"{start}    ", width - 2)
                lines.append(" \\\n".join(broken).replace("\0", " "))
            else:
                lines += hanging(line, "", "  ", width)
        return "\n".join(indent + line for line in lines)


def hanging(text: str, first: str, others: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken only at spaces.

    Args:
        first: what the first line begins with. others: what further lines begin with.
    """
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def whole(least: int) -> Callable[[str], int]:
    """Flag type for whole numbers of at least `least`."""

    def counted(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {least} or more")
        return value

    return counted


def number(least: float) -> Callable[[str], float]:
    """Flag type for finite numbers of at least `least`."""

    def measured(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: expected a number, {least:g} or more")
        return value

    return measured
