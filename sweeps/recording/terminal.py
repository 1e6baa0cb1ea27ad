"""The live view of a sweep on a terminal: trials with bars, the best one so far, what is left.

Lines about the progress of single trials go only to `sweep.log` meanwhile; other lines appear above the view. Without a
terminal there is no view, and every line is printed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.formatting import metric_text, metric_title, metric_unit
from sweeps.recording.progress import PROGRESS, Progress, StandardError, for_terminal, logger
from trainables.common.units import duration

_PER_SECOND = 2.0
_OTHER_LINES = 6  # of the terminal's height: the view's own summary, and lines above it


class ProgressTable:
    """What rich draws of the progress of a sweep, at the time of drawing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        progress = self._progress
        trials = progress.trials_by_id
        running = {id: trial for id, trial in trials.items() if trial.status == "running"}
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, ratio=2, overflow="ellipsis")
        table.add_column(ratio=1, min_width=10)
        for _ in range(2):
            table.add_column(no_wrap=True, justify="right")
        shown = list(running.items())[: max(1, console.height - _OTHER_LINES)]
        for id, trial in shown:
            whole = trial.whole or progress.max_steps
            bar = ProgressBar(total=whole or 1, completed=trial.step)
            table.add_row(id, trial.name, bar, f"{trial.step}/{whole}", _value(progress, trial.value))
        if len(shown) < len(running):
            table.add_row("", f"and {len(running) - len(shown)} more trials that run")
        ended = len(trials) - len(running)
        failed = sum(trial.status == "failed" for trial in trials.values())
        stopped = sum(trial.status == "stopped" for trial in trials.values())
        counts = [f"{stopped} stopped early by ASHA", *([f"{failed} failed"] if failed else [])]
        bar = ProgressBar(total=progress.trials or 1, completed=ended)
        table.add_row("all", ", ".join(counts), bar, f"{ended}/{progress.trials}", "")
        yield table
        yield Text(_best(progress), no_wrap=True, overflow="ellipsis")
        left = progress.seconds_left()
        yield Text(f"about {duration(left)} left" if left is not None else "time left: known after the first report")


def _value(progress: Progress, value: float | None) -> str:
    if value is None or not progress.shown:
        return ""
    return f"{metric_title(progress.shown[0])} {metric_text(progress.shown[0], value)}"


def _best(progress: Progress) -> str:
    best = progress.best()
    if best is None:
        return "best so far: none yet"
    id, trial = best
    unit = metric_unit(progress.shown[0])
    return f"best so far: {id} ({trial.name}), {_value(progress, trial.value)}{unit} at step {trial.step}"


class _Above(logging.Handler):
    """Prints lines above the view, except those that the view shows."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, PROGRESS, False):
            self._console.print(Text(self.format(record)), soft_wrap=True)


@contextmanager
def live_view(progress: Progress) -> Iterator[None]:
    """Shows the progress of a sweep while it lasts, if the log goes to a terminal that can redraw lines."""
    terminals = [each for each in logger.handlers if isinstance(each, StandardError)]
    if not terminals or not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield
        return
    console = Console(stderr=True)
    above = _Above(console)
    above.setFormatter(terminals[0].formatter)
    above.addFilter(for_terminal)
    for terminal in terminals:
        logger.removeHandler(terminal)
    logger.addHandler(above)
    try:
        with Live(
            ProgressTable(progress),
            console=console,
            refresh_per_second=_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        ):
            console.show_cursor()  # the process may be ended without a chance to show it again
            yield
    finally:
        logger.removeHandler(above)
        for terminal in terminals:
            logger.addHandler(terminal)
