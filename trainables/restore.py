"""Restores pictures with a finished trial: `python -m trainables.restore RUN/best INPUT OUTPUT`.

INPUT is a picture or a folder of pictures, of any size. Restored pictures keep their names and are 8-bit PNG files. See
docs/restore.md.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import math
import posixpath
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from trainables.common.command import ExitStatus, command_flags, exit_statuses, run_command
from trainables.common.devices import own_device
from trainables.common.errors import InputError
from trainables.common.flags import Flags, whole
from trainables.common.locations import Location
from trainables.common.paths import check_writable, path_of, write_whole
from trainables.images.sources.decode import reason
from trainables.images.sources.images import FileImages, names_column
from trainables.images.sources.listing import images_below
from trainables.images.sources.notices import shown_plainly
from trainables.pretrained.fetched import finished_at
from trainables.pretrained.finished_trial import check_asked, finished_settings
from trainables.settings import TrialSettings, assignments, flatten, override, reason_unread
from trainables.settings.methods import METHODS
from trainables.settings.presets import preset
from trainables.settings.roles import RESTORES, WHEN_RESTORING

if TYPE_CHECKING:
    import torch

PROG, DESCRIPTION = "python -m trainables.restore", "Restores pictures with a finished trial of any method."
TILE = 512
"""Side of the tiles of large pictures, restored pixels, unless the trial was trained on larger crops."""
WHOLE = 1.5
"""Pictures of at most so many tiles' sides are restored as a whole."""
OVERLAP = 32
_SILENT_FOR = 10.0  # seconds
_EPILOG = f"""\
examples:
  python -m trainables.restore results/sinsr_loss_ratios/RUN/best photos/ restored/
  python -m trainables.restore trainables/assets/latent_diffusion_sample large.jpg restored/ --tile 256
{exit_statuses("some pictures could not be restored")}
"""


def restoration_settings(finished: Path, changes: Sequence[tuple[str, Any]] = ()) -> TrialSettings:
    """The settings of a finished trial of any method, for restoring.

    Args:
        changes: (name, value) of settings in `RESTORES`.

    Raises:
        InputError: not a finished trial, or a setting that cannot be changed for its method.
    """
    name = f"FINISHED {finished}"
    found = finished_settings(finished, "", name)
    trained = override(preset("sample").trial, {**found, **WHEN_RESTORING, "checkpoint": str(finished)})
    read = METHODS[trained.method].sections
    accepted = [
        setting for setting in RESTORES if setting.partition(".")[0] in read and not reason_unread(setting, trained)
    ]
    for setting, value in changes:
        if setting not in accepted:
            raise InputError(
                f"--set {setting}={value}: cannot be changed for a finished {trained.method}; expected one of "
                f"{', '.join(accepted)}"
            )
    settings = override(trained, dict(changes))
    check_asked(found, flatten(settings), name)
    return settings


def picture_key(seed: int, name: str, pixels: np.ndarray) -> tuple[int, ...]:
    """Seed, file name and size of a picture as numbers; its noise is a function of them.

    Args:
        name: file name without folders. pixels: (H, W, 3).
    """
    digest = hashlib.sha256(name.encode()).digest()
    return (seed, int.from_bytes(digest[:7]), *pixels.shape[:2])  # 7 bytes, because the method's key is int64


class Restorer:
    """A finished trial, ready to restore pictures of any size.

    Args:
        settings: from `restoration_settings`.
        tile: largest side of the tiles for larger pictures, restored pixels; 0 restores every picture as a whole. None:
            `TILE` or the crops of training, for pictures with a side of more than `WHOLE` tiles.
        overlap: smallest overlap of neighbouring tiles, restored pixels. Its outer quarters are discarded; between them
            the tiles are blended linearly.

    Attributes:
        multiple: divisor of both sides of a restored tile, pixels.
        whole: largest side of a picture that is restored as a whole, restored pixels.

    Raises:
        InputError: weights that are missing or do not match, or a tile size that the method cannot restore.
    """

    def __init__(
        self, settings: TrialSettings, device: torch.device, tile: int | None = None, overlap: int = OVERLAP
    ) -> None:
        from trainables.methods.build import build_method, method_class
        from trainables.pretrained.autoencoders import latent_shape, load_latents

        method_class(settings.method).check(settings)
        self.settings, self.device = settings, device
        self.method = build_method(settings, device)
        self.method.networks.eval()
        self.latent = latent_shape(settings)
        self.encode = load_latents(settings, device).encode if METHODS[settings.method].latents else None
        self.multiple = math.lcm(self.method.size_multiple, settings.pairs.scale)
        self.overlap = _up(overlap, self.multiple)
        if tile and (tile % self.multiple or tile <= self.overlap):
            raise InputError(
                f"--tile {tile}: expected a multiple of {self.multiple} for {settings.method}, at least "
                f"{self.overlap + self.multiple} with --overlap {overlap}"
            )
        self.tile = _up(max(TILE, settings.pairs.image_size, 2 * self.overlap), self.multiple) if tile is None else tile
        self.whole = math.inf if tile == 0 else tile or WHOLE * self.tile

    def __call__(
        self, pixels: np.ndarray, key: Sequence[int], restored_tile: Callable[[int, int], None] = lambda done, of: None
    ) -> np.ndarray:
        """The restored picture, uint8 (H * scale, W * scale, 3).

        Args:
            pixels: uint8 (H, W, 3), RGB. Padded by reflection to a size that the method accepts.
            key: seed of the noise, see `picture_key`.
            restored_tile: called after each tile with the number of restored tiles, and of all of this picture.
        """
        scale, factor = self.settings.pairs.scale, self.latent.factor
        rows, columns = pixels.shape[:2]
        unit = self.multiple // scale
        padded = np.pad(pixels, ((0, -rows % unit), (0, -columns % unit), (0, 0)), mode="reflect")
        height, width = padded.shape[0] * scale, padded.shape[1] * scale
        shape = self.latent.channels, height // factor, width // factor
        noise = np.random.default_rng([*key, 0]).standard_normal(shape, np.float32)
        restored = np.zeros((3, height, width), np.float32)
        limit = self.tile if max(height, width) > self.whole else max(height, width)
        tiles = list(itertools.product(*(self._tiles(length, limit) for length in (height, width))))
        for done, ((y, down), (x, across)) in enumerate(tiles, 1):
            place = slice(y, y + len(down)), slice(x, x + len(across))
            piece = self.restore(
                padded[tuple(slice(s.start // scale, s.stop // scale) for s in place)],
                noise[:, *(slice(s.start // factor, s.stop // factor) for s in place)],
                (*key, y, x),
            )
            restored[:, *place] += down[:, None] * across * piece
            restored_tile(done, len(tiles))
        cropped = restored[:, : rows * scale, : columns * scale]
        return np.rint(cropped * 255).astype(np.uint8).transpose(1, 2, 0)

    def restore(self, pixels: np.ndarray, noise: np.ndarray, key: Sequence[int]) -> np.ndarray:
        """float32 (3, H * scale, W * scale) in [0, 1], restored as in validation.

        Args:
            pixels: uint8 (H, W, 3); `multiple` divides the restored sides.
            noise: standard normal, (C, h, w) of the latent, or of the restored picture for methods without latents.
            key: seed of the noise that the sampler adds in its steps.
        """
        import torch

        from trainables.images.tensors import image_tensor, to_tensor, upsample
        from trainables.methods.shared.precision import AUTOCAST

        degraded = image_tensor(pixels, self.device)
        batch = {"degraded": degraded, "noise": to_tensor(noise[None].copy(), self.device)}
        batch["noise_key"] = torch.tensor([list(key)])
        dtype = AUTOCAST.get(self.settings.training.precision)
        with torch.no_grad():
            if self.encode:
                batch["latent_degraded"] = self.encode(upsample(degraded, self.settings.pairs.scale))
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                restored = self.method.restore(batch)
        return restored[0].float().clamp(0, 1).cpu().numpy()

    def _tiles(self, length: int, limit: int) -> list[tuple[int, np.ndarray]]:
        """Start and pixel weights of each tile along one side. The weights add up to 1 at every pixel.

        The tiles are as few as possible, then as small as possible.

        Args:
            limit: the largest side of a tile.
        """
        if length <= limit:
            return [(0, np.ones(length, np.float32))]
        count = -((self.overlap - length) // (limit - self.overlap))
        step = _up(-((self.overlap - length) // count), self.multiple)
        tile, overlap = step + self.overlap, max(1, self.overlap)
        starts = [*range(0, length - tile, step), length - tile]
        rise = np.clip((np.arange(tile) + 0.5 - overlap / 4) / (overlap / 2), 0, 1).astype(np.float32)
        weights, total = [], np.zeros(length, np.float32)
        for start in starts:
            weight = np.ones_like(rise) if start == 0 else rise
            weights.append(weight if start == starts[-1] else np.minimum(weight, rise[::-1]))
            total[start : start + tile] += weights[-1]
        return [(start, weight / total[start : start + tile]) for start, weight in zip(starts, weights, strict=True)]


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@dataclass
class Work:
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


def plan_restoration(source: Path, folder: Path, overwrite: bool = False, skip_existing: bool = False) -> Work:
    """The pictures of `source` and their output files. Creates nothing.

    Raises:
        InputError: no pictures, or output files that cannot be written or already exist.
    """
    images = _list_pictures(source)
    check_writable("OUTPUT", folder)
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise InputError(f"OUTPUT {folder}: is inside INPUT {source}; choose a folder outside it")
    became: dict[Path, str] = {}
    for name in images.file_names:
        output = (folder / name).with_suffix(".png")
        if output in became:
            raise InputError(f"INPUT {source}: {became[output]} and {name} would both become {output}; rename one")
        became[output] = name
    outputs = list(became)
    there = {output for output in outputs if output.exists()}
    inputs = {Path(images.place(row)).resolve() for row in range(len(images))} if there else set()
    if lost := sorted(output for output in there if output.resolve() in inputs):
        raise InputError(f"OUTPUT {folder}: {lost[0]} is one of the pictures to restore; choose another folder")
    if there and not (overwrite or skip_existing):
        raise InputError(
            f"OUTPUT {folder}: {len(there)} of {len(outputs)} files already exist, such as {min(there)}; choose "
            "another folder, or give --skip-existing or --overwrite"
        )
    missing = [row for row, output in enumerate(outputs) if overwrite or output not in there]
    return Work(images, outputs, missing)


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


def restore_pictures(restorer: Restorer, work: Work, seed: int) -> None:
    """Restores and writes the missing pictures, one after another. Damaged pictures are named and skipped.

    Raises:
        InputError: a file cannot be written.
    """
    for row in work.missing:
        name, started = work.images.file_names[row], time.monotonic()
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
            print(f"{name}: not restored ({trouble})", file=sys.stderr, flush=True)
            continue
        work.done += 1
        (height, width), scale = pixels.shape[:2], restorer.settings.pairs.scale
        size = f"{width} x {height} -> {width * scale} x {height * scale}"
        many = f" in {tiles.count} tiles" if tiles.count > 1 else ""
        print(f"{name}: {size}{many}, {time.monotonic() - started:.1f} s", flush=True)


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
    """Writes a picture. If memory is not enough, returns a message."""
    content = io.BytesIO()
    try:
        Image.fromarray(restorer(pixels, key, tiles)).save(content, "PNG")
    except (RuntimeError, MemoryError) as error:  # the CPU allocator raises a plain RuntimeError
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        smaller = (restorer.tile or 2 * TILE) // 2 // restorer.multiple * restorer.multiple
        return f"not enough memory; try --tile {smaller}"
    write_whole(output, content.getvalue())
    return ""


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
    source, folder = (path_of(name, getattr(flags, name.lower())) for name in ("INPUT", "OUTPUT"))
    finished = finished_at("FINISHED", flags.finished)
    settings = restoration_settings(finished.absolute(), assignments(flags.set, "diffusion.inference_steps=20"))
    work = plan_restoration(source, folder, flags.overwrite, flags.skip_existing)
    try:
        if work.missing:
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
