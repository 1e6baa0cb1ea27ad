"""Restores pictures with a finished trial: `python -m trainables.restore RUN/best INPUT OUTPUT`.

INPUT is a picture or a folder of pictures, of any size. Restored pictures keep their names and are 8-bit PNG files. See
docs/restore.md.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import posixpath
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trainables.common.command import ExitStatus, command_flags, exit_statuses, run_command
from trainables.common.devices import own_device
from trainables.common.errors import InputError, without_controls
from trainables.common.flags import Flags, whole
from trainables.common.locations import Location
from trainables.common.machine import available_memory, limit_threads
from trainables.common.paths import check_writable, path_of, replace_whole
from trainables.common.units import byte_text
from trainables.images.sources.decode import reason
from trainables.images.sources.images import FileImages, names_column
from trainables.images.sources.listing import FOUND, images_below
from trainables.images.sources.notices import shown_plainly
from trainables.pretrained.fetched import finished_at
from trainables.restorer import OVERLAP, TILE, WHOLE, NotFinite, Restorer, picture_key, restoration_settings
from trainables.settings import assignments

if TYPE_CHECKING:
    import torch

PROG, DESCRIPTION = "python -m trainables.restore", "Restores pictures with a finished trial of any method."
_SILENT_FOR = 10.0  # seconds
_FULL = (errno.ENOSPC, errno.EDQUOT)  # every other picture would fail too, after it was restored
_EPILOG = f"""\
examples:
  python -m trainables.restore results/sinsr_loss_ratios/RUN/best photos/ restored/
  python -m trainables.restore trainables/assets/latent_diffusion_sample large.jpg restored/ --tile 256
{exit_statuses("some pictures could not be restored")}
"""


@dataclass
class Restoration:
    """The pictures to restore, and the progress.

    Attributes:
        outputs: an output file for each of `images`. missing: indices of the pictures to restore.
        done: number of restored pictures. failed: number of pictures that could not be restored.
    """

    images: FileImages
    outputs: list[Path]
    missing: list[int]
    done: int = 0
    failed: int = 0


def plan_restoration(source: Path, folder: Path, overwrite: bool = False, skip_existing: bool = False) -> Restoration:
    """The pictures of `source` and their output files. Creates nothing.

    Raises:
        InputError: no pictures, or output files that cannot be written or already exist.
    """
    images = _list_pictures(source)
    check_writable("OUTPUT", folder)
    if folder.suffix.lower() in FOUND and not folder.exists():
        raise InputError(
            f"OUTPUT {folder}: named like a picture; expected a folder, such as {folder.with_suffix('')}, in which "
            "every picture keeps its name"
        )
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise InputError(f"OUTPUT {folder}: is inside INPUT {source}; choose a folder outside it")
    became: dict[Path, str] = {}
    for name in images.file_names:
        output = (folder / name).with_suffix(".png")
        if output in became:
            raise InputError(f"INPUT {source}: {became[output]} and {name} would both become {output}; rename one")
        became[output] = name
    outputs = list(became)
    there = {output for output in outputs if os.path.exists(output)}  # False for a name that is too long
    inputs = {Path(images.place(row)).resolve() for row in range(len(images))} if there else set()
    if lost := sorted(output for output in there if output.resolve() in inputs):
        raise InputError(f"OUTPUT {folder}: {lost[0]} is one of the pictures to restore; choose another folder")
    if there and not (overwrite or skip_existing):
        raise InputError(
            f"OUTPUT {folder}: {len(there)} of {len(outputs)} files already exist, such as {min(there)}; choose "
            "another folder, or give --skip-existing or --overwrite"
        )
    missing = [row for row, output in enumerate(outputs) if overwrite or output not in there]
    return Restoration(images, outputs, missing)


def _list_pictures(source: Path) -> FileImages:
    place = Location(str(source.absolute()))
    match place.kind():
        case "nothing":
            raise InputError(f"INPUT {source}: no such file or folder; expected a picture, or a folder of pictures")
        case "file":
            return FileImages(place.parent, names_column([place.name], place), np.array([place.stamp()]))
    try:
        return images_below(place)
    except InputError as error:
        raise InputError(f"INPUT {error}") from None


def restore_pictures(restorer: Restorer, work: Restoration, seed: int) -> None:
    """Restores and writes the missing pictures, one after another. Those that cannot be are named and skipped.

    Raises:
        InputError: the disk is full.
    """
    for row in work.missing:
        name, started = work.images.file_names[row], time.monotonic()
        shown = without_controls(name)
        try:
            pixels = work.images.pixels(row)
        except Exception as error:  # decoders raise many kinds of errors for damaged files
            trouble = reason(error)
        else:
            tiles = _Tiles(name)
            key = picture_key(seed, posixpath.basename(name), pixels)
            trouble = _restore_picture(restorer, pixels, key, work.outputs[row], tiles)
        if trouble:
            work.failed += 1
            print(f"{shown}: not restored ({trouble})", file=sys.stderr, flush=True)
            continue
        work.done += 1
        (height, width), scale = pixels.shape[:2], restorer.settings.pairs.scale
        size = f"{width} x {height} -> {width * scale} x {height * scale}"
        how = f"in {tiles.count} tiles" if tiles.count > 1 else "as a whole"
        print(f"{shown}: {size} {how}, {time.monotonic() - started:.1f} s", flush=True)


class _Tiles:
    """Counts the tiles of a picture, and prints a line from time to time."""

    def __init__(self, name: str) -> None:
        self._name, self._last = name, time.monotonic()
        self.count = 1

    def __call__(self, done: int, count: int) -> None:
        self.count = count
        if done < count and time.monotonic() - self._last >= _SILENT_FOR:
            self._last = time.monotonic()
            print(f"{self._name}: {done} of {count} tiles", flush=True)


def _restore_picture(restorer: Restorer, pixels: np.ndarray, key: Sequence[int], output: Path, tiles: _Tiles) -> str:
    """Writes a picture; returns why that was not possible, or nothing.

    Raises:
        InputError: the disk is full.
    """
    needed, (free, limited_by) = restorer.bytes_for(pixels), available_memory()
    if needed > free:  # the system would end the process
        return f"not enough memory: needs at least {byte_text(needed)}; {limited_by} has {byte_text(free)} free"
    content = io.BytesIO()
    try:
        Image.fromarray(restorer(pixels, key, tiles)).save(content, "PNG")
    except NotFinite as error:
        return str(error)
    except (RuntimeError, MemoryError) as error:  # the CPU allocator raises a plain RuntimeError
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        return f"not enough memory{less_memory(restorer)}"
    try:
        replace_whole(output, content.getvalue())
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(f"{output}: cannot be written ({error.strerror}); existing files were kept") from None
        return f"{output} cannot be written: {error.strerror}"
    return ""


def less_memory(restorer: Restorer) -> str:
    """Flags that restore in less memory, as the end of a message; empty if there are none."""
    smaller = (restorer.tile or 2 * TILE) // 2 // restorer.multiple * restorer.multiple
    if smaller >= restorer.overlap + restorer.multiple:
        return f"; try --tile {smaller}"
    if smaller:
        return f"; try --tile {smaller} --overlap 0"
    return "" if restorer.device.type == "cpu" else "; try --device cpu"


def parser(prog: str = PROG) -> Flags:
    flags = command_flags(prog, DESCRIPTION, _EPILOG.replace(PROG, prog))
    flags.add_argument(
        "finished", metavar="FINISHED", help="a finished trial, such as the best/ of a run; a folder or URI"
    )
    flags.add_argument("input", metavar="INPUT", help="a picture, or a folder of pictures")
    flags.add_argument("output", metavar="OUTPUT", help="a folder for the restored pictures, created if needed")
    existing = flags.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    existing.add_argument("--skip-existing", action="store_true", help="keep existing files and restore the others")
    flags.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change how the trial restores")
    flags.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="seed of the random noise that restoring starts from (0)"
    )
    flags.add_argument("--device", default="", metavar="DEVICE", help="such as cpu or cuda:1 (a GPU if available)")
    flags.add_argument(
        "--tile",
        type=whole(0),
        metavar="PIXELS",
        help="restore larger pictures in tiles of at most this side; 0 restores every picture as a whole (default: "
        f"{TILE}, or the trial's crops if they are larger, for pictures with a side of more than {WHOLE:g} tiles)",
    )
    flags.add_argument("--overlap", type=whole(0), metavar="PIXELS", help=f"smallest overlap of tiles ({OVERLAP})")
    return flags


def _tiling(flags: argparse.Namespace) -> tuple[int | None, int]:
    """(tile, overlap) for `Restorer`, with the checks that do not need its method."""
    if flags.tile == 0 and flags.overlap is not None:
        raise InputError(f"--overlap {flags.overlap}: has no effect with --tile 0")
    overlap = OVERLAP if flags.overlap is None else flags.overlap
    if flags.tile and flags.tile <= overlap:
        raise InputError(f"--tile {flags.tile}: expected more than --overlap {overlap}")
    return flags.tile, overlap


def _device(text: str) -> torch.device:
    import torch

    if not text:
        return torch.device(own_device())
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError):  # unknown, missing, or not supported by this build of torch
        raise InputError(
            f"--device {text}: not available on this machine; expected cpu, or cuda:N with a GPU"
        ) from None
    return torch.device(text)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Runs the command line; returns the exit status."""

    def work(flags: argparse.Namespace) -> int:
        with shown_plainly():
            return _run(flags)

    return run_command(parser(prog), arguments, work, "no picture was restored")


def _run(flags: argparse.Namespace) -> int:
    if flags.seed >= 2**63:
        raise InputError(f"--seed {flags.seed}: expected 0 to {2**63 - 1}")
    tile, overlap = _tiling(flags)
    source, folder = (path_of(name, getattr(flags, name.lower()), any_bytes=True) for name in ("INPUT", "OUTPUT"))
    finished = finished_at("FINISHED", flags.finished)
    settings = restoration_settings(finished.absolute(), assignments(flags.set, "diffusion.inference_steps=20"))
    work = plan_restoration(source, folder, flags.overwrite, flags.skip_existing)
    try:
        if work.missing:
            limit_threads()
            restore_pictures(Restorer(settings, _device(flags.device), tile, overlap), work, flags.seed)
    except KeyboardInterrupt:
        again = "to start again" if flags.overwrite else "with --skip-existing to resume"
        done = f"{work.done} of {len(work.missing)} pictures restored"
        raise KeyboardInterrupt(f"{done}; run the same command {again}") from None
    there = len(work.outputs) - len(work.missing)
    print(
        f"restored {work.done} of {len(work.missing)} pictures to {folder}"
        + (f"; {there} already existed" if there else "")
        + (f"; {work.failed} could not be restored" if work.failed else "")
    )
    return ExitStatus.FAILED if work.failed else ExitStatus.DONE


if __name__ == "__main__":
    raise SystemExit(main())
