"""Checks every method on the GPU of this machine, without Ray: `make gpu-check`.

For every method, precision and option it trains, validates, writes checkpoints, continues from one, restores a picture,
compares losses and picture with those of the CPU in fp32, and looks at what is left in memory. Then two trials share
the device by halves. Networks are imported in the processes that this command starts.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.common.command import ExitStatus, command_flags, exit_statuses, run_command, starting
from trainables.common.errors import InputError
from trainables.common.flags import Flags, whole
from trainables.common.machine import usable_cpus
from trainables.common.paths import write_whole
from trainables.settings.methods import METHODS

if TYPE_CHECKING:
    from trainables.gpu_check.checks import CheckResult

PROG = "python -m trainables.gpu_check"
PRECISIONS = ("fp32", "bf16", "fp16")
TOGETHER = ("sinsr", "pix2pix")
"""The trials that share the device."""
_EPILOG = f"""\
Most of the time is compiling: --no-compile leaves those checks out.
examples:
  {PROG} --table gpu.md
  {PROG} --device cpu --methods sinsr,pix2pix --steps 2 --precisions fp32,bf16
{exit_statuses("a check failed")}
"""


def parser() -> Flags:
    flags = command_flags(PROG, "Checks every method on the GPU of this machine, without Ray.", _EPILOG)
    flags.add_argument("--device", default="cuda", metavar="DEVICE", help="such as cuda:1, or cpu (cuda)")
    flags.add_argument(
        "--methods", type=_names(METHODS), default=tuple(METHODS), metavar="M,M", help="methods to check (all)"
    )
    flags.add_argument(
        "--precisions", type=_names(PRECISIONS), default=PRECISIONS, metavar="P,P", help="of fp32, bf16, fp16 (all)"
    )
    flags.add_argument("--steps", type=whole(2), default=20, metavar="N", help="training steps of a trial (20)")
    flags.add_argument("--no-compile", action="store_true", help="without training.compile")
    flags.add_argument("--no-sharing", action="store_true", help="without two trials on the device at once")
    flags.add_argument(
        "--preset", choices=("sample", "sample-print"), default="sample", help="preset with the sizes (sample)"
    )
    flags.add_argument("--jobs", type=whole(1), metavar="N", help="methods at once (a process for two CPUs)")
    flags.add_argument("--table", metavar="FILE", help="also write the results to a file, as Markdown")
    return flags


def _names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def named(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(text.split(",")))
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]}: expected some of {','.join(known)}")
        return chosen

    return named


def table(rows: Sequence[CheckResult]) -> str:
    """Markdown: a line per method, a column per mode, then the failures in words."""
    names, modes = (list(dict.fromkeys(values)) for values in zip(*((row.name, row.mode) for row in rows), strict=True))
    cells = {(row.name, row.mode): row for row in rows}
    lines = [f"| method | {' | '.join(modes)} |", f"|---{'|---' * len(modes)}|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(_cell(cells.get((name, mode))) for mode in modes)} |")
    failures = [f"- {row.name}, {row.mode}: {row.failure}" for row in rows if row.failure]
    return "\n".join([*lines, *(["", *failures] if failures else [])])


def _cell(row: CheckResult | None) -> str:
    if row is None:
        return "–"
    if row.failure:
        return "**fails**"
    return f"ok, {1000 * row.step:.0f} ms, {row.loss:.1%}" if row.step else "ok"


def _device_name(device: str) -> str:
    """The device in words.

    Raises:
        InputError: this machine does not have it.
    """
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise InputError("this machine has no GPU that PyTorch can use; --device cpu runs the same checks on a CPU")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):
        raise InputError(f"--device {device}: not on this machine; expected cpu, cuda or cuda:N") from None
    found = torch.device(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else platform.machine()
    return f"{device} ({name}), PyTorch {torch.__version__}, CUDA {torch.version.cuda}"


def _run(flags: argparse.Namespace) -> int:
    shown = _device_name(flags.device)
    from trainables.gpu_check.checks import Setting
    from trainables.gpu_check.processes import run_methods, run_shared

    cpus = usable_cpus()
    jobs = min(flags.jobs or max(1, cpus // 2), len(flags.methods))
    compiled = (False,) if flags.no_compile else (False, True)
    modes = tuple((precision, one) for precision in flags.precisions for one in compiled)
    given = Setting(flags.device, flags.steps, modes, flags.preset)
    # Each of the processes would compile with as many as there are CPUs.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, cpus // jobs)))
    print(f"{shown}; preset {flags.preset}, {flags.steps} steps, {jobs} at once", flush=True)
    started = time.monotonic()

    def show(row: CheckResult) -> None:
        print(row, flush=True)

    rows = run_methods(flags.methods, given, jobs, max(1, cpus // jobs), show)
    if not flags.no_sharing:
        together = [name for name in TOGETHER if name in flags.methods] or flags.methods
        rows += run_shared((together[0], together[-1]), given, max(1, cpus // 2), show)
    failed = sum(bool(row.failure) for row in rows)
    end = f"{len(rows)} checks in {time.monotonic() - started:.0f} s, {failed} failed"
    text = table(rows)
    print(f"\n{text}\n\n{end}")
    if flags.table:
        legend = "ok, then milliseconds of a training step, and the largest difference of a loss in the first step from"
        header = f"{shown}; preset `{flags.preset}`, {flags.steps} steps. A cell: {legend} the CPU in fp32."
        write_whole(Path(flags.table), f"{header}\n\n{text}\n\n{end}\n".encode())
    return ExitStatus.FAILED if failed else ExitStatus.DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_command(parser(), arguments, _run, "no table was written")


if __name__ == "__main__":
    with starting():
        sys.exit(main())
