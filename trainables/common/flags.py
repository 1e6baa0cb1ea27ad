"""Command lines whose errors are one line, and say what would have been accepted."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn

from trainables.common.errors import UsageError


class Flags(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UsageError` instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        of_a_type = re.match(r"argument (\S+): (.*: expected .*)", message)
        text = " ".join(of_a_type.groups()) if of_a_type else f"{message.removeprefix('argument ')}; see --help"
        raise UsageError(text, self.prog)


def whole(least: int) -> Callable[[str], int]:
    """The type of a flag that takes whole numbers from `least` on."""

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
    """The type of a flag that takes finite numbers from `least` on."""

    def measured(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: expected a number, {least:g} or more")
        return value

    return measured
