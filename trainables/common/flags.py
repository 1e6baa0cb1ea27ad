"""Parsers of command lines with one-line errors that name the accepted values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn

from trainables.common.errors import UsageError


class Flags(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        of_a_type = re.match(r"argument (\S+): (.*: expected .*)", message)
        text = " ".join(of_a_type.groups()) if of_a_type else f"{message.removeprefix('argument ')}; see --help"
        raise UsageError(text, self.prog)


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
