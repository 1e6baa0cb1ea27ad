"""The cost of a sweep: how it spent its time, and how much memory it needed.

The first command below reads the folder of a finished run. The second runs a command and measures the memory of all
processes that it starts.

    python -m benchmarks.sweep_cost results/sinsr_loss_ratios/20261121-093000
    python -m benchmarks.sweep_cost --measure -- python run_sweep.py --space sinsr_loss_ratios
"""

from __future__ import annotations

import argparse
import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sweeps.planning.run_files import LOG, RUN_SETTINGS
from sweeps.recording.tables import RunTables
from trainables.common.command import ExitStatus
from trainables.common.errors import InputError

_TIME = re.compile(r"(\d\d):(\d\d):(\d\d)  ?(.*)")
_TRIAL = re.compile(r"([tc]\d+) (starts|continues|finished|stopped|failed|interrupted)\b")


@dataclass
class Timeline:
    """Times from sweep.log, in seconds since its first line.

    Attributes:
        first_trial, last_trial: the start of the first and the end of the last trial.
        concurrent: the largest number of trials that ran at once.
    """

    end: float = 0.0
    first_trial: float = math.inf
    last_trial: float = 0.0
    concurrent: int = 0


def read_timeline(log: Path) -> Timeline:
    """Reads the trials from the log. Its lines have the time of day; where it jumps back, a day has passed."""
    timeline, running, days, last, first = Timeline(), set[str](), 0, 0.0, None
    for line in log.read_text().splitlines():
        if (stamped := _TIME.match(line)) is None:
            continue
        hours, minutes, seconds, text = stamped.groups()
        now = 86400.0 * days + 3600 * int(hours) + 60 * int(minutes) + int(seconds)
        if now < last - 43200:
            days, now = days + 1, now + 86400
        first = now if first is None else first
        last, timeline.end = now, now - first
        if found := _TRIAL.match(text):
            if found[2] in ("starts", "continues"):
                running.add(found[1])
                timeline.first_trial = min(timeline.first_trial, timeline.end)
                timeline.concurrent = max(timeline.concurrent, len(running))
            else:
                running.discard(found[1])
                timeline.last_trial = timeline.end
    return timeline


def time_report(run: Path) -> str:
    """How a finished run spent its time.

    Raises:
        InputError: not the folder of a run, or a run in which no trial has ended.
    """
    if not (run / RUN_SETTINGS).exists() or not (run / LOG).exists():
        raise InputError(f"{run}: not the folder of a run; expected one with {RUN_SETTINGS} and {LOG}")
    trials = [row for row in RunTables(run).load().leaderboard if row["kind"] != "control"]
    timeline = read_timeline(run / LOG)
    if not timeline.last_trial or not trials:
        raise InputError(f"{run}: no trial has ended in it yet; expected a finished run")
    busy = math.fsum(row["busy_seconds"] or 0.0 for row in trials)
    own = math.fsum(row["wall_seconds"] or 0.0 for row in trials)
    span = timeline.last_trial - timeline.first_trial
    slots = timeline.concurrent * span
    counts = Counter(row["status"] for row in trials)
    rows = [
        ("wall time", f"{timeline.end:.0f} s"),
        ("  before the first trial", f"{timeline.first_trial:.0f} s: preparing data, controls"),
        ("  trials", f"{span:.0f} s, {timeline.concurrent} at once"),
        ("  after the last trial", f"{timeline.end - timeline.last_trial:.0f} s"),
        ("trials", f"{len(trials)}: {', '.join(f'{count} {status}' for status, count in sorted(counts.items()))}"),
        ("steps", f"{sum(row['steps'] for row in trials)} in all"),
        ("training or validating", f"{busy:.0f} s over all trials, that is"),
        ("", f"{busy / slots:.1%} of {timeline.concurrent} x {span:.0f} s, first trial's start to last trial's end"),
        ("", f"{busy / own:.1%} of {own:.0f} s, the trials' own time"),
    ]
    return "\n".join(f"{name:26}{value}" for name, value in rows)


Memory = Mapping[str, Sequence[int]]
"""Name of processes -> bytes of each."""


class ProcessTree:
    """A process and all its descendants.

    Ray's daemons have sessions of their own, so membership follows ancestry. A process stays a member when its parent
    ends, because it was seen before.
    """

    def __init__(self, root: psutil.Process) -> None:
        self._members = {root}

    def memory(self) -> Memory:
        """PSS, which divides shared pages among their users, so that a sum counts each page once. Systems without PSS
        give USS, which ignores shared pages.
        """
        parts: dict[str, list[int]] = defaultdict(list)
        for process in self._living():
            with suppress(psutil.Error):  # it may have ended meanwhile
                memory = process.memory_full_info()
                parts[_label(process)].append(getattr(memory, "pss", memory.uss))
        return parts

    def _living(self) -> set[psutil.Process]:
        everything = list(psutil.process_iter(["ppid"]))
        self._members &= set(everything)  # processes are equal if id and creation time are
        ids = {process.pid for process in self._members}
        while new := [process for process in everything if process.info["ppid"] in ids and process.pid not in ids]:
            self._members.update(new)
            ids.update(process.pid for process in new)
        return self._members


def _label(process: psutil.Process) -> str:
    """A readable name: `ray::trial.train`, the script that Python runs, or the program."""
    words = process.cmdline() or [process.name()]
    if words[0].startswith("ray::"):
        return words[0].split("(")[0]
    scripts = [Path(word).name for word in words[1:] if word.endswith(".py")]
    return " ".join([Path(words[0]).name, *scripts[:1]])


def measure(command: Sequence[str], every: float) -> tuple[int, Memory, float]:
    """Runs a command; returns its exit status, its memory at the peak, and the seconds it took."""
    started = time.monotonic()
    child = subprocess.Popen(command)
    # Ctrl-C ends the command, which is in the same foreground group; its peak is still reported.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    tree = ProcessTree(psutil.Process(child.pid))
    peak = tree.memory()
    while child.poll() is None:
        peak = max(peak, tree.memory(), key=_total)
        with suppress(subprocess.TimeoutExpired):
            child.wait(every)
    signal.signal(signal.SIGINT, previous)
    return child.returncode, peak, time.monotonic() - started


def _total(memory: Memory) -> int:
    return sum(map(sum, memory.values()))


def memory_report(peak: Memory) -> str:
    lines = [f"{'peak memory':26}{_total(peak) / 1e9:.2f} GB, made up of"]
    largest = sorted(peak.items(), key=lambda part: -sum(part[1]))
    return "\n".join(lines + [f"{'':26}{sum(used) / 1e9:6.2f} GB  {len(used):3} x {name}" for name, used in largest])


def main(arguments: Sequence[str] | None = None) -> int:
    own = list(sys.argv[1:] if arguments is None else arguments)
    own, command = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep_cost",
        usage="%(prog)s RUN | %(prog)s [--every SECONDS] --measure -- COMMAND",
        description=(__doc__ or "").split("\n")[0],
    )
    flags.add_argument("run", nargs="?", type=Path, help="the folder of a finished run")
    flags.add_argument("--measure", action="store_true", help="run a command and measure its memory")
    flags.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="interval of measurements (1)")
    given = flags.parse_args(own)
    if given.measure != bool(command) or given.measure == bool(given.run):
        flags.error("expected either the folder of a run, or --measure -- COMMAND")
    try:
        if not command:
            print(time_report(given.run))
            return 0
        status, peak, seconds = measure(command, given.every)
    except (InputError, OSError) as error:
        print(f"sweep_cost: error: {error}", file=sys.stderr)
        return ExitStatus.INVALID_INPUT
    print(f"{'wall time':26}{seconds:.0f} s, exit status {status}\n{memory_report(peak)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
