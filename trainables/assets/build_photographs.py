"""The photographs that the shipped networks are trained on: from Debian packages, listed in `photographs.csv`.

`fetch` downloads the packages with apt, unpacks them without installing, reduces each photograph and keeps it as PNG in
a cache folder. Reduction averages away camera noise and JPEG artefacts, which a restoration network must not learn to
produce: by at least two, of cut-outs, which are smaller, by at least 1.5. No photograph of the sample is in the list:
all of the sample is unseen by what ships.

A cut-out is a photographed object with a transparent background.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from trainables.common.errors import InputError
from trainables.common.temporary import temporary_folder

LIST = Path(__file__).parent / "photographs.csv"
LONGEST_SIDE = {"photograph": 1024, "cut-out": 512}  # pixels, of what is kept
LEAST_REDUCTION = {"photograph": 2.0, "cut-out": 1.5}


@dataclass(frozen=True)
class Listed:
    """One row of `photographs.csv`.

    Attributes:
        version: of the package that the list was made from. Another release may lack the file; `fetch` says so.
        path: inside the package.
        licence: as the package states it.
    """

    package: str
    version: str
    kind: Literal["photograph", "cut-out"]
    path: str
    author: str
    licence: str

    @property
    def cached_name(self) -> str:
        """Path in the cache, unique: `photographs/plasma-workspace-wallpapers__Kite_contents_images_2560x1600.png`."""
        last = "_".join(Path(self.path).with_suffix("").parts[-4:])
        return f"{self.kind}s/{self.package}__{last}.png"


def listed() -> list[Listed]:
    """All photographs of the list, in its order."""
    with LIST.open(newline="", encoding="utf-8") as file:
        return [Listed(**row) for row in csv.DictReader(file)]  # type: ignore[arg-type]


def default_cache() -> Path:
    """Below the user's cache folder, outside any repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restoration-sweeps" / "build-photographs"


def fetch(cache: Path, log: Callable[[str], None] = print) -> None:
    """Fills `cache` with the listed photographs that it does not hold yet.

    Raises:
        InputError: apt is missing, a package cannot be downloaded, or a listed file is not in its package.
    """
    missing = [row for row in listed() if not (cache / row.cached_name).is_file()]
    if not missing:
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"make assets needs {tool} to fetch Debian packages; run it on Debian or Ubuntu")
    for package in sorted({row.package for row in missing}):
        log(f"fetching {package}")
        with temporary_folder() as folder:
            root = _unpack(package, folder)
            for row in missing:
                if row.package == package:
                    _keep(row, root, cache / row.cached_name)


def reduce(image: Image.Image, kind: str) -> Image.Image:
    """The image reduced by `LEAST_REDUCTION` or more, to at most `LONGEST_SIDE`; RGB, of cut-outs RGBA."""
    longest = max(image.size)
    factor = max(LEAST_REDUCTION[kind], longest / LONGEST_SIDE[kind])
    width, height = (max(1, round(side / factor)) for side in image.size)
    if kind == "photograph":
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    # Pillow weights colours by alpha here, so that hidden colours do not bleed into the rim.
    return image.convert("RGBA").resize((width, height), Image.Resampling.BOX)


def load(cache: Path, kind: str) -> list[Image.Image]:
    """The cached photographs of one kind, decoded. Call `fetch` first."""
    images = []
    for row in listed():
        if row.kind == kind:
            with Image.open(cache / row.cached_name) as image:
                image.load()
                images.append(image.copy())
    return images


def _unpack(package: str, folder: Path) -> Path:
    """Downloads and unpacks; returns the root of the package's files."""
    try:
        subprocess.run(
            ["apt-get", "download", package],
            cwd=folder,
            check=True,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"apt-get download {package} failed ({last}); try apt-get update first") from None
    (archive,) = folder.glob("*.deb")
    root = folder / "root"
    subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root


def _keep(row: Listed, root: Path, target: Path) -> None:
    source = root / row.path
    if not source.is_file():
        raise InputError(
            f"{row.package} has no {row.path}; the list was made from version {row.version}. Use that "
            "release, or remove the line from photographs.csv"
        )
    with Image.open(source) as image:
        # A JPEG decoder can skip most of the work where the picture is reduced by more than two anyway.
        image.draft("RGB", (2 * LONGEST_SIDE[row.kind], 2 * LONGEST_SIDE[row.kind]))
        reduced = reduce(image, row.kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    reduced.save(partial, "PNG")
    partial.replace(target)
