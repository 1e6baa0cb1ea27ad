"""Sweeps from Python: `sweeps.run` starts one, `sweeps.open_run` opens a finished or running one.

import sweeps
run = sweeps.run("lora", trials=6, max_steps=100)
print(run.answer.verdict)
run.leaderboard[["id", "status", "val/psnr"]]
run.best.restore("photograph.png").save("restored.png")
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from search_spaces import SearchSpace
from sweeps.answering.comparison import Answer
from sweeps.answering.recorded import recorded_answer
from sweeps.planning.budget import time_span
from sweeps.planning.own_spaces import register_space
from sweeps.planning.plan import make_plan
from sweeps.planning.question import resolve
from sweeps.planning.run_bucket import fetch_trial, place_of, run_to_read
from sweeps.planning.run_files import RUN_SETTINGS
from sweeps.planning.run_settings import read_record
from sweeps.planning.settings import SweepSettings
from sweeps.recording.tables import read_rows
from sweeps.running.expectation import check_budget
from sweeps.running.warm_start import warm_start_of
from sweeps.sweep import start
from trainables.common.devices import own_device
from trainables.common.errors import InputError, one_line
from trainables.common.machine import limit_threads
from trainables.common.paths import is_uri
from trainables.images.sources.decode import read_pixels
from trainables.restorer import Restorer, picture_key, restoration_settings


def run(space: SearchSpace | str | os.PathLike[str], *, set: Mapping[str, Any] | None = None, **settings: Any) -> Run:
    """Runs a sweep, as `python run_sweep.py` does, and returns its run when it has ended or was interrupted.

    Args:
        space: a space, the name of one, or the path of a Python file that defines `SPACE`.
        set: dotted setting name -> value for all trials, as `--set`.
        settings: flags of the command line with underscores, such as `trials=6, max_steps=100, data="photos/"`. A time
            is a text as there ("8h") or seconds; `constraint` is one text or several.

    Raises:
        InputError: an unknown flag, or a value that is refused.
    """
    known = {field.name for field in fields(SweepSettings)} - {"space", "set"}
    if unknown := sorted(settings.keys() - known):
        raise InputError(f"{', '.join(unknown)}: no such setting of a sweep; there are {', '.join(sorted(known))}")
    name = register_space(space if isinstance(space, SearchSpace) else os.fspath(space))
    pairs = tuple((key, _text(value)) for key, value in (set or {}).items())
    settings = {key: _flag(key, value) for key, value in settings.items()}
    plan = make_plan(resolve(SweepSettings(name, set=pairs, **settings)))
    warm = warm_start_of(plan)
    plan.check()
    check_budget(plan)
    folders: list[Path] = []
    start(plan, warm, folders.append)
    return Run(folders[0])


def open_run(folder: str | os.PathLike[str]) -> Run:
    """Opens a run, also while it runs.

    Args:
        folder: its folder, or its URI in a bucket, from which the run's files are copied to the user's cache now.

    Raises:
        InputError: not a run.
    """
    path = run_to_read("run", os.fspath(folder))
    if not (path / RUN_SETTINGS).is_file():
        raise InputError(f"{path}: not the folder of a run; expected one with a {RUN_SETTINGS}")
    return Run(path)


class Run:
    """A run: its tables, its answer and its winner. Tables are read anew at each access, so they follow a running one
    in a folder. Of one in a bucket, they are as `open_run` found them.

    Attributes:
        folder: results/<space>/<run>.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def leaderboard(self) -> pd.DataFrame:
        """One row per trial and per control; docs/results.md describes the columns."""
        return self._frame("leaderboard")

    @property
    def history(self) -> pd.DataFrame:
        """One row per validation."""
        return self._frame("history")

    @property
    def per_image(self) -> pd.DataFrame:
        """One row per (trial, split, image)."""
        return self._frame("per_image")

    @property
    def settings(self) -> dict[str, Any]:
        """The content of settings.yaml.

        Raises:
            InputError: it is damaged.
        """
        return read_record(self.folder)

    @property
    def answer(self) -> Answer:
        """The answer so far; `answer.verdict` is its two sentences. Nothing is called better before all trials of the
        confirmation have ended.
        """
        rows, per_image = (read_rows(self.folder / f"{name}.parquet") for name in ("leaderboard", "per_image"))
        return recorded_answer(self.settings, rows, per_image)

    @property
    def report(self) -> Path:
        """The report as a page."""
        return self.folder / "report" / "index.html"

    @property
    def best(self) -> FinishedTrial:
        """The winner.

        Raises:
            InputError: there is none yet.
        """
        if not (self.folder / "best").is_dir():
            raise InputError(f"{self.folder}: has no winner yet; the run has not ended, or no trial finished")
        return FinishedTrial(self.folder / "best")

    def trial(self, id: str) -> FinishedTrial:
        """A trial, from its newest checkpoint.

        Raises:
            InputError: there is no such trial, or it has no checkpoint.
        """
        rows = {row["id"]: row for row in read_rows(self.folder / "leaderboard.parquet")}
        if id not in rows or not rows[id]["checkpoint"]:
            known = ", ".join(name for name, row in rows.items() if row["checkpoint"])
            raise InputError(f"{self.folder}: trial {id!r} has no checkpoint; those with one are {known or 'none'}")
        checkpoint, place = rows[id]["checkpoint"], place_of(self.folder)
        # The table may come from somebody else; version 0.1 kept the checkpoints of groups in a folder below.
        if not re.fullmatch(rf"trials/{re.escape(id)}/(group/)?checkpoint_\w+", checkpoint) or id in (".", ".."):
            raise InputError(
                f"{self.folder}: the checkpoint of trial {id!r} is {one_line(repr(checkpoint))}; expected a folder of "
                "that trial"
            )
        return FinishedTrial(fetch_trial(place, checkpoint) if is_uri(place) else self.folder / checkpoint)

    def _frame(self, name: str) -> pd.DataFrame:
        return pd.DataFrame(read_rows(self.folder / f"{name}.parquet"))


class FinishedTrial:
    """A finished trial that restores pictures. Its networks are loaded at the first picture.

    Attributes:
        folder: with its weights and settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._restorers: dict[int | None, Restorer] = {}  # by side of the tiles

    def restore(
        self, picture: str | os.PathLike[str] | Image.Image | np.ndarray, seed: int = 0, tile: int | None = None
    ) -> Image.Image:
        """A picture restored.

        Args:
            picture: a file, read as training reads it (orientation, colour profile, 16 bits); a picture; or uint8
                (H, W, 3) in RGB.
            seed: of the noise.
            tile: largest side of the tiles for larger pictures, restored pixels; 0 for a whole picture, None as in
                `python -m trainables.restore`.

        Raises:
            InputError: weights that are missing, or a tile size that the method cannot restore.
            NotFinite: an ArithmeticError; the network gave NaN or infinite values.
            OSError: a file that is no picture.
        """
        if isinstance(picture, str | os.PathLike):
            picture = read_pixels(Path(picture).read_bytes())
        pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise InputError(f"picture: {pixels.dtype} of shape {pixels.shape}; expected uint8 (H, W, 3)")
        limit_threads()
        if tile not in self._restorers:
            device = torch.device(own_device())
            self._restorers[tile] = Restorer(restoration_settings(self.folder), device, tile)
        return Image.fromarray(self._restorers[tile](pixels, picture_key(seed, "picture", pixels)))


def _flag(name: str, value: Any) -> Any:
    """A value of `sweeps.run` as the command line's parser would give it."""
    if name == "time_budget" and isinstance(value, str):
        try:
            return time_span(value)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{name}={error}") from None
    if name == "constraint":
        return (value,) if isinstance(value, str) else tuple(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _text(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
