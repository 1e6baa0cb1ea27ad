"""Runs checks in processes of their own: a fault of a GPU ends its process, and must not end the other checks."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import torch

from trainables.common.temporary import temporary_folder
from trainables.gpu_check.checks import CheckResult, Setting, check_method, check_together, checked

PATIENCE = 600.0
"""Seconds without a row after which a process is ended."""

_SPAWN = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
Show = Callable[[CheckResult], None]


def run_methods(methods: Sequence[str], given: Setting, processes: int, threads: int, show: Show) -> list[CheckResult]:
    """The rows of all methods, in their order; several at once, each shown as it ends.

    Args:
        threads: of each process, on CPUs.
    """
    lock = threading.Lock()

    def shown(row: CheckResult) -> None:
        with lock:
            show(row)

    def work(method: str) -> list[CheckResult]:
        return _in_process(method, threads, shown, check_method, (method, given))

    with ThreadPoolExecutor(processes) as pool:
        return [row for rows in pool.map(work, methods) for row in rows]


def run_shared(methods: Sequence[str], given: Setting, threads: int, show: Show) -> list[CheckResult]:
    """Two trials at once on one device."""
    together = _SPAWN.Barrier(2)

    def work(method: str) -> list[CheckResult]:
        return _in_process(method, threads, show, check_together, (method, given), together)

    with ThreadPoolExecutor(2) as pool:
        return [row for rows in pool.map(work, methods) for row in rows]


def _in_process(
    name: str,
    threads: int,
    show: Show,
    checks: Callable[..., Iterator[CheckResult]],
    given: tuple[Any, ...],
    *more: Any,
) -> list[CheckResult]:
    ours, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_child, args=(theirs, name, threads, checks, given, more), daemon=True)
    process.start()
    theirs.close()
    rows = []
    try:
        while True:
            if not ours.poll(PATIENCE):
                raise TimeoutError(f"nothing for {PATIENCE:.0f} s")
            row = ours.recv()
            if row is None:
                break
            rows.append(row)
            show(row)
    except (EOFError, TimeoutError) as error:
        process.join(5)
        reason = str(error) or f"its process ended with exit status {process.exitcode}"
        rows.append(CheckResult(name, "process", reason))
        show(rows[-1])
    finally:
        process.terminate()
        process.join()
    return rows


def _child(
    pipe: Connection,
    name: str,
    threads: int,
    checks: Callable[..., Iterator[CheckResult]],
    given: tuple[Any, ...],
    more: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)

    def all_rows() -> None:
        with temporary_folder() as folder:
            for row in checks(*given, folder, *more):
                pipe.send(row)

    row = checked(name, "preparation", all_rows)  # what no single check has caught
    if row.failure:
        pipe.send(row)
    pipe.send(None)
