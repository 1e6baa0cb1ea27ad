"""The cost of a preparation: how busy it keeps the cores, and its memory for few and for many photographs.

Each size is one run of `python -m trainables.data prepare` on its own Ray, observed from outside: the processor time
and the proportional memory (PSS, shared pages counted once) of all its processes. Photographs are crops of those in
scikit-image's wheel, written as JPEG; every one gives one pair.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from trainables.data.stores.shard_format import MANIFEST
from trainables.images.sources.photographs import Photograph, load_photographs

ROOT = Path(__file__).parent.parent
_SIDE = (256, 384)  # height and width of a photograph


@dataclass(frozen=True)
class Taken:
    """Seconds of wall time. `peak`: bytes.

    `making`: from the last look without pairs to the first with all of them, and `busy`: mean number of busy cores
    between these two looks, which are about a second apart or more.
    """

    seconds: float
    making: float
    busy: float
    peak: float


def write_photographs(folder: Path, count: int) -> None:
    """JPEGs `000000.jpg`, ...: crops at random positions of the sample."""
    rng = np.random.default_rng(0)
    sources = [photograph for photograph in load_photographs("sample", "train") if isinstance(photograph, Photograph)]
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = sources[number % len(sources)].pixels
        top, left = (int(rng.integers(side - least + 1)) for side, least in zip(pixels.shape, _SIDE, strict=False))
        crop = np.ascontiguousarray(pixels[top : top + _SIDE[0], left : left + _SIDE[1]])
        Image.fromarray(crop).save(folder / f"{number:06d}.jpg", quality=92)


def prepare_watched(folder: Path, store: Path, count: int, method: str, draws: int) -> Taken:
    """One preparation from its start to its end."""
    sets = {"pairs.train_pairs": count, "pairs.validation_pairs": 16}
    if method == "sinsr":
        sets["sinsr.draws"] = draws
    command = [sys.executable, "-m", "trainables.data", "prepare", "--data", str(folder), "--store", str(store)]
    command += ["--method", method, *(part for name, value in sets.items() for part in ("--set", f"{name}={value}"))]
    started, peak = time.monotonic(), 0.0
    used: dict[int, float] = {}
    began = ended = started, 0.0  # time and CPU seconds
    complete = False
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        looks = 0
        while process.poll() is None:
            processes = _tree(process.pid)
            if looks % 5 == 0:  # reading the mappings of a gigabyte keeps a core busy for a moment
                peak = max(peak, sum(_pss(pid) for pid in processes))
            looks += 1
            used |= {pid: seconds for pid in processes if (seconds := _cpu_seconds(pid)) is not None}
            look = time.monotonic(), sum(used.values())
            if not any(store.glob("*/shard-*")):
                began = look
            if not complete:
                ended, complete = look, any(store.glob(f"*/{MANIFEST}"))
            time.sleep(1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    stopped = time.monotonic()
    if not complete:
        ended = stopped, sum(used.values())
    making = ended[0] - began[0]
    return Taken(stopped - started, making, (ended[1] - began[1]) / making, peak)


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system
    except psutil.NoSuchProcess:
        return None


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return 1024.0 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, ValueError):
        return 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--images", type=int, nargs="+", default=[500, 5000])
    flags.add_argument("--method", default="sinsr", help="method whose stores are made (sinsr)")
    flags.add_argument("--draws", type=int, default=1, help="the teacher's draws per pair, for sinsr (1)")
    chosen = flags.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    drawn = f", {chosen.draws} draw(s)" if chosen.method == "sinsr" else ""
    print(f"{chosen.method}{drawn}, {cores} cores")
    print(f"{'images':>8} {'s in all':>9} {'s making':>9} {'pairs/s':>8} {'cores busy':>11} {'peak PSS, MB':>13}")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for count in chosen.images:
            photographs = Path(folder, f"photographs-{count}")
            write_photographs(photographs, count)
            taken = prepare_watched(photographs, Path(folder, f"store-{count}"), count, chosen.method, chosen.draws)
            peaks.append(taken.peak)
            print(
                f"{count:8} {taken.seconds:9.0f} {taken.making:9.0f} {count / taken.making:8.1f}"
                f" {f'{taken.busy:.2f} of {cores}':>11} {taken.peak / 1e6:13.0f}",
                flush=True,
            )
    print(f"largest peak / smallest: {max(peaks) / min(peaks):.2f}")


if __name__ == "__main__":
    main()
