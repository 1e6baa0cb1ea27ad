"""Larger crops of test photographs, restored by the baseline and the winner when a sweep has ended.

Prepared crops may be 64 pixels wide: enough to compare trials, too little to see what a method does to a photograph.
The larger ones are degraded as all test pairs are. They are for the eye; no mean includes them.

report/larger/ID.png        input | output | target of each crop, as `Pictures`
report/larger/values.json   the training steps of each trial, and the metrics of each crop as per_image.parquet has them
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sweeps.answering.verdict import UNTRAINED
from sweeps.formatting import Row
from sweeps.planning.plan import Plan
from sweeps.recording.progress import logger
from trainables.common.devices import own_device
from trainables.common.errors import one_line
from trainables.common.paths import replace_folder
from trainables.data.stores.roots import local_root
from trainables.images.pairs import Pair, Pairs
from trainables.images.tensors import image_tensor, to_pixels, upsample
from trainables.metrics import build_metrics
from trainables.metrics.names import test_name
from trainables.restorer import NotFinite, Restorer, picture_key, restoration_settings
from trainables.settings import override
from trainables.training.pictures import Pictures

SIDE = 256  # pixels
CROPS = 2
LARGE_ENOUGH = 192  # pixels; test crops of this side are seen as they are
LONGEST = 20.0  # seconds for a trial, after which no further crop is begun
LARGER = "larger"
"""Stands for these crops where others name a split."""
Checkpoint = Callable[[str], Path | None]
_FOLDER, _VALUES = "larger", "values.json"


def restore_larger(plan: Plan, folder: Path, steps: Mapping[str, int], checkpoint: Checkpoint) -> None:
    """Restores crops of up to two test photographs and keeps them with the report.

    There are none if the test crops are large themselves, if all test photographs are small, or on a cluster, whose
    head may have no room for networks. What fails, or an interrupt, costs a line in the log: the answer is there.

    Args:
        folder: of the run.
        steps: trial -> its training steps, of the trials that restore.
        checkpoint: trial -> its checkpoint; called only if there is something to restore.
    """
    try:
        if _kept(folder).get("steps") == steps or not (crops := _crops(plan)):
            return
        logger.info("pictures   restoring crops of %d px of test photographs", crops[0].target.shape[0])
        found = {id: path for id in steps if (path := checkpoint(id)) is not None}
        _restore(plan, crops, found, {id: steps[id] for id in found}, folder / "report" / _FOLDER)
    except (Exception, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error)
        logger.info("note       pictures: no larger crops (%s)", reason)


def larger_pictures(folder: Path, trial: str) -> Pictures | None:
    """The crops that a trial or control has restored; None if there are none that can be read."""
    try:
        return Pictures.read(folder / "report" / _FOLDER / f"{trial}.png")
    except (OSError, ValueError):
        return None


def larger_values(folder: Path) -> list[Row]:
    """The metrics of all larger crops; empty if there are none that can be read."""
    rows = _kept(folder).get("values", [])
    return [row | {"split": LARGER} for row in rows if isinstance(row, dict) and {"id", "image"} <= row.keys()]


def _kept(folder: Path) -> dict[str, Any]:
    """What `values.json` has; empty if it cannot be read."""
    try:
        found = json.loads((folder / "report" / _FOLDER / _VALUES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _crops(plan: Plan) -> list[Pair]:
    """Pairs of test photographs, of one size: of those that are large enough, or else of the largest."""
    trial = plan.question.trial
    if not plan.confirms or plan.question.settings.address or trial.pairs.size_of("test") >= LARGE_ENOUGH:
        return []
    photographs = plan.source.of_trial(trial, "test", local_root(plan.store))
    sides = [min(size) for size in photographs.sizes]
    chosen = sorted(range(len(sides)), key=lambda k: -min(sides[k], SIDE))[:CROPS]
    unit = math.lcm(trial.pairs.scale, 8)
    side = min([SIDE, *(sides[k] for k in chosen)]) // unit * unit
    if not chosen or side <= trial.pairs.size_of("test"):
        return []
    larger = override(trial, {"pairs.test_size": side, "pairs.test_pairs": len(chosen)})
    pairs = Pairs([photographs[k] for k in chosen], larger.pairs, "test", larger.data.seed)
    return [pairs[row] for row in range(len(pairs))]


def _restore(
    plan: Plan, crops: list[Pair], checkpoints: Mapping[str, Path], steps: Mapping[str, int], kept: Path
) -> None:
    trial, device = plan.question.trial, torch.device(own_device())
    keys = [picture_key(trial.training.seed, crop.name, crop.degraded) for crop in crops]
    enlarged = [upsample(image_tensor(crop.degraded, device), trial.pairs.scale)[0] for crop in crops]
    restored = {UNTRAINED: [to_pixels((one * 0.5 + 0.5).clamp(0, 1)) for one in enlarged]}
    for id, path in checkpoints.items():  # one network in memory at a time
        restorer, began = Restorer(restoration_settings(path), device), time.monotonic()
        restored[id] = []
        for crop, key in zip(crops, keys, strict=True):
            if restored[id] and time.monotonic() - began > LONGEST:
                break
            try:
                restored[id].append(restorer(crop.degraded, key))
            except NotFinite as error:
                raise ValueError(f"{id}: {error}") from error
    count = min(len(of_one) for of_one in restored.values())
    measure = build_metrics(plan.metrics, device, trial.metrics.border)
    working = kept.with_name(f".{kept.name}")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    values: list[dict[str, Any]] = []
    for id, outputs in restored.items():
        rows = []
        for crop, pixels in zip(crops[:count], outputs[:count], strict=True):
            side = crop.target.shape[0]
            seen = np.asarray(Image.fromarray(crop.degraded).resize((side, side), Image.Resampling.NEAREST))
            rows.append(np.concatenate([seen, pixels, crop.target], axis=1))
            ours, target = (image_tensor(one, device) * 0.5 + 0.5 for one in (pixels, crop.target))
            found = {test_name(name): value.item() for name, value in measure(ours, target).items()}
            values.append({"id": id, "image": crop.name, **found})
        Pictures([crop.name for crop in crops[:count]], np.stack(rows)).write(working / f"{id}.png")
    (working / _VALUES).write_text(json.dumps({"steps": steps, "values": values}), encoding="utf-8")
    replace_folder(working, kept)
