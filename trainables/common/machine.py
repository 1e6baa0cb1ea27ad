"""What this process may use of the machine: a container, a batch system or `ulimit` may allow less than there is."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs: those that the scheduler may use, at most the quota of the container; at least 1."""
    cpus = len(os.sched_getaffinity(0))
    for folder in _own_cgroups():
        quota, period = (
            _numbers(folder / "cpu.max")
            or (
                *_numbers(folder / "cpu.cfs_quota_us"),
                *_numbers(folder / "cpu.cfs_period_us"),
            )
            or (math.inf, 1.0)
        )
        if 0 < quota < math.inf:
            cpus = min(cpus, max(1, math.floor(quota / period)))
    return cpus


def available_memory() -> tuple[float, str]:
    """Bytes of memory that are free for this process, and what limits them: "this machine" or the container."""
    free, limited_by = float(psutil.virtual_memory().available), "this machine"
    for folder in _own_cgroups():
        for limit_name, usage_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _numbers(folder / limit_name), _numbers(folder / usage_name)
            if limit and usage:
                # Cached files count as used, but make room when memory is needed.
                left = limit[0] - usage[0] + _statistic(folder / "memory.stat", cache_name)
                if left < free:
                    free, limited_by = max(0.0, left), f"the memory limit of its control group ({folder / limit_name})"
    return free, limited_by


def address_space() -> float:
    """Bytes of address space that each process may have (`ulimit -v`); infinite without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if limit == resource.RLIM_INFINITY else float(limit)


def _own_cgroups() -> Iterator[Path]:
    """The folders of this process's control groups and of all above them, of both versions of the interface."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        roots = [_CGROUPS / name for name in controllers.split(",")] if controllers else [_CGROUPS]
        for root in roots:
            # Inside a container the path may be the host's; its own limits are then at the root.
            inner = (root / path.lstrip("/"), *(root / path.lstrip("/")).parents)
            yield from dict.fromkeys(f for f in (*inner, root) if f.is_relative_to(root) and f.is_dir())


def _numbers(path: Path) -> tuple[float, ...]:
    """The numbers in a file, "max" as infinity; empty if it does not exist."""
    try:
        return tuple(math.inf if word == "max" else float(word) for word in path.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return ()


def _statistic(path: Path, name: str) -> float:
    try:
        found = dict(line.split() for line in path.read_text(encoding="utf-8").splitlines())
        return float(found.get(name, 0))
    except (OSError, ValueError):
        return 0.0
