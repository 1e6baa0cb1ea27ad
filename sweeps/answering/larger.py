"""Larger pieces of test photographs, restored by the baseline and the winner when a sweep has ended.

Prepared crops may be 64 pixels wide: enough to compare trials, too little to see what a method does to a photograph.
The pieces are degraded as all test pairs are. They are shown, and are no part of any mean.

report/larger/ID.png        input | output | target of each piece, as `Pictures`
report/larger/values.json   the metrics of each piece, in the form of per_image.parquet
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sweeps.answering.verdict import UNTRAINED
from sweeps.formatting import Row
from sweeps.planning.plan import Plan
from sweeps.recording.progress import logger
from trainables.common.errors import InputError, one_line
from trainables.data.stores.roots import local_root
from trainables.images.pairs import Pair, Pairs
from trainables.images.sources.source import open_source
from trainables.images.tensors import to_tensor, upsample
from trainables.metrics import build_metrics
from trainables.metrics.names import test_name
from trainables.restore import Restorer, picture_key, restoration_settings
from trainables.settings import TrialSettings, override
from trainables.training.pictures import Pictures

SIDE = 256  # pixels of a piece
PIECES = 2
LARGE_ENOUGH = 192  # pixels; test crops of this side are seen as they are
LONGEST = 20.0  # seconds, after which no further piece is begun
LARGER = "larger"
"""Stands for the pieces where others name a split."""
_FOLDER, _VALUES = "larger", "values.json"


def restore_larger(plan: Plan, folder: Path, checkpoints: Mapping[str, Path]) -> bool:
    """Restores pieces of up to two test photographs and keeps them with the report.

    Args:
        folder: of the run.
        checkpoints: trial -> the checkpoint that restores.

    Returns:
        Whether there are pieces. There are none if the test crops are large themselves or the photographs are small.
        What fails costs a line in the log.
    """
    try:
        pieces = _pieces(plan)
        if not pieces:
            return False
        logger.info("pictures   restoring pieces of %d px of test photographs", pieces[0].target.shape[0])
        _restore(plan.question.trial, plan.metrics, pieces, checkpoints, folder / "report" / _FOLDER)
    except (InputError, OSError, RuntimeError) as error:
        logger.info("note       pictures: no larger pieces (%s)", one_line(error))
        return False
    return True


def larger_pictures(folder: Path, trial: str) -> Pictures | None:
    """The pieces that a trial or control has restored; None if there are none that can be read."""
    try:
        return Pictures.read(folder / "report" / _FOLDER / f"{trial}.png")
    except (OSError, ValueError):
        return None


def larger_values(folder: Path) -> list[Row]:
    """The metrics of all pieces; empty if there are none that can be read."""
    try:
        rows = json.loads((folder / "report" / _FOLDER / _VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [row | {"split": LARGER} for row in rows if isinstance(row, dict) and {"id", "image"} <= row.keys()]


def _pieces(plan: Plan) -> list[Pair]:
    """Pairs of test photographs, of one size."""
    trial = plan.question.trial
    if not plan.confirms or trial.pairs.size_of("test") >= LARGE_ENOUGH:
        return []
    source, cache = open_source(trial.data.source, trial.data.input), local_root(plan.store)
    sizes = source.of_trial(trial, "test", cache).sizes
    if not sizes:
        return []
    unit = math.lcm(trial.pairs.scale, 8)
    side = min(SIDE, *(min(size) for size in sizes)) // unit * unit
    if side <= trial.pairs.size_of("test"):
        return []
    larger = override(trial, {"pairs.validation_size": side, "pairs.test_pairs": len(sizes)})
    pairs = Pairs(source.of_trial(larger, "test", cache), larger.pairs, "test", larger.data.seed)
    return [pairs[row] for row in range(min(PIECES, len(pairs)))]


def _restore(
    trial: TrialSettings, metrics: tuple[str, ...], pieces: list[Pair], checkpoints: Mapping[str, Path], kept: Path
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    restorers = {id: Restorer(restoration_settings(path), device) for id, path in checkpoints.items()}
    measure = build_metrics(metrics, device, trial.metrics.border)
    rows: dict[str, list[np.ndarray]] = {id: [] for id in (UNTRAINED, *restorers)}
    values: list[dict[str, Any]] = []
    shown: list[str] = []
    began = time.monotonic()
    for piece in pieces:
        if shown and time.monotonic() - began > LONGEST:
            break
        shown.append(piece.name)
        target = _tensor(piece.target, device)
        enlarged = upsample(_tensor(piece.degraded, device), trial.pairs.scale) * 0.5 + 0.5
        key = picture_key(trial.training.seed, piece.name, piece.degraded)
        restored = {UNTRAINED: _pixels(enlarged)} | {id: run(piece.degraded, key) for id, run in restorers.items()}
        side = piece.target.shape[0]
        seen = np.asarray(Image.fromarray(piece.degraded).resize((side, side), Image.Resampling.NEAREST))
        for id, pixels in restored.items():
            rows[id].append(np.concatenate([seen, pixels, piece.target], axis=1))
            found = measure(_tensor(pixels, device) * 0.5 + 0.5, target * 0.5 + 0.5)
            values.append(
                {"id": id, "image": piece.name} | {test_name(name): value.item() for name, value in found.items()}
            )
    working = kept.with_name(f".{kept.name}")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    for id, of_id in rows.items():
        Pictures(shown, np.stack(of_id)).write(working / f"{id}.png")
    (working / _VALUES).write_text(json.dumps(values), encoding="utf-8")
    shutil.rmtree(kept, ignore_errors=True)
    working.rename(kept)


def _tensor(pixels: np.ndarray, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 as (1, 3, H, W) in [-1, 1]."""
    return to_tensor(pixels.transpose(2, 0, 1)[None].copy(), device)


def _pixels(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] as (H, W, 3) uint8."""
    return (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
