"""Pictures in the report: which images tell most, and input, bicubic, baseline, the best other one and target side by
side.

The script of the page (`report.js`) makes one large comparison with a slider of them. Without scripts they stay side by
side.
"""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sweeps.answering.larger import LARGER, larger_pictures, larger_values
from sweeps.answering.markup import note
from sweeps.answering.verdict import UNTRAINED, calls_better, named_finding
from sweeps.answering.view import View, number
from sweeps.formatting import Row, configuration_of, metric_text, metric_title, metric_unit
from sweeps.recording.image_values import TEST, VALIDATION
from sweeps.trial_config import CONFIRMATION
from trainables.metrics.names import test_name
from trainables.training.checkpoint_folders import sorted_checkpoints
from trainables.training.pictures import PICTURES, Pictures

SHOWN_SIDE = 256  # pixels; of larger images the centre is shown
_LEAST_WIDTH = 190  # pixels on the page: smaller images are enlarged, by a whole factor
_MOST_TRIED = 20  # trials in which pictures are looked for; runs of version 0.1 have none
_LEAST_ERROR = 0.05  # of 1; a smaller scale would show rounding as errors
_ERRORS = ((0, 0, 0), (66, 16, 104), (168, 44, 96), (236, 105, 44), (250, 190, 50), (255, 255, 200))
PSNR = "val/psnr"
_ENLARGED = {True: " enlarged", False: ""}  # only these show their pixels; to make others smaller needs smoothing
_INPUT = "input (untrained)"  # what bicubic restores, where input and target have the same size


@dataclass(frozen=True)
class Side:
    """A trial or control whose restorations are shown. `role`: "baseline", "winner", ..., for readers."""

    role: str
    id: str
    pictures: Pictures
    values: Mapping[str, Row]
    """Image -> its row in per_image.parquet."""


def image_section(folder: Path, view: View, per_image: Sequence[Row], baseline_ids: Sequence[str]) -> str:
    """The images of both splits; empty if no trial has kept pictures.

    Args:
        folder: of the run.
        baseline_ids: the baseline's trials, finished or not.
    """
    values = _values([*per_image, *larger_values(folder)])
    parts, shown = [], list[str]()
    titles = {LARGER: "Larger crops of test photographs", TEST: "Test photographs"}
    for split, title in {**titles, VALIDATION: "Validation photographs"}.items():
        sides = _sides(folder, view, values, split, baseline_ids)
        if len(sides) > (UNTRAINED in [side.id for side in sides]):
            cases = "".join(_case(title, case, sides, split, view) for case in _cases(view, sides, values, split))
            said = note("For the eye only: they are in no mean.") if split == LARGER else ""
            parts.append(f'<h3 class="split">{title}</h3>{said}{cases}')
            shown += [side.id for side in sides]
    if not parts:
        return ""
    text = (
        f"{_seeds_shown(view, shown)} Click a picture to compare it in the slider. Error maps show the absolute "
        f"difference from the target, mean over RGB. Of images larger than {SHOWN_SIDE} pixels the centre is shown."
    )
    return f'{note(text)}<div id="stage" hidden></div>{"".join(parts)}'


def _seeds_shown(view: View, ids: Sequence[str]) -> str:
    """Which trials the pictures are of: their values are not those of their configurations.

    Args:
        ids: of trials, the baseline's first.
    """
    trials = [id for id in dict.fromkeys(ids) if id not in {row["id"] for row in view.controls}]
    if not trials:
        return ""
    if view.found.unconfirmed:
        return f"One trial of each: {' and '.join(trials)}."
    return (
        f"One seed of each configuration, the best on the validation photographs: {' and '.join(trials)}. "
        "The answer rests on all seeds."
    )


def side_by_side(
    folder: Path, view: View, per_image: Sequence[Row], baseline_ids: Sequence[str], enlarged: int = 3
) -> Image.Image | None:
    """Test images in rows; input, bicubic if it is not the input, baseline, winner or best finalist, and target in
    columns, each restoration above its value of the objective. The images are the larger crops of test photographs, or
    without them the best, the median and the worst of the winner. None if the trials have kept no pictures.

    Args:
        enlarged: pixels per pixel, without larger crops.
    """
    values = _values([*per_image, *larger_values(folder)])
    for split in (LARGER, TEST):
        sides = _sides(folder, view, values, split, baseline_ids)
        if sides and sides[-1].id != UNTRAINED:
            break
    else:
        return None
    if split == LARGER:
        enlarged = 1
    rows, captions = [], []
    for _, image in _cases(view, sides, values, split)[:3]:
        first = sides[-1].pictures
        captions.append({side.role: _numbers(side.values.get(image, {}), [view.metric], split) for side in sides})
        degraded = {} if sides[0].role == _INPUT else {"input": _cell(first, image, 0)}
        cells = {**degraded, **{side.role: _cell(side.pictures, image, 1) for side in sides}}
        rows.append({**cells, "target": _cell(first, image, 2)})
    names = list(rows[0])
    height, width, _ = rows[0]["target"].shape
    height, width, gap, line = enlarged * height, enlarged * width, 6, 24
    sheet = Image.new("RGB", (len(names) * (width + gap) - gap, line + len(rows) * (height + line)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)

    def write(text: str, left: int, top: int) -> None:
        pen.text((left + 2, top + 3), text, fill=(40, 40, 40), font_size=16)

    for column, name in enumerate(names):
        left = column * (width + gap)
        write(name, left, 0)
        for index, (cells, texts) in enumerate(zip(rows, captions, strict=True)):
            top = line + index * (height + line)
            picture = Image.fromarray(cells[name]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top))
            write(texts.get(name, ""), left, top + height)
    return sheet


def _values(per_image: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(trial, split) -> image -> its row."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in per_image:
        found.setdefault((row["id"], row.get("split") or VALIDATION), {})[row["image"]] = row
    return found


def columns(view: View, split: str, baselines: Sequence[str]) -> list[tuple[str, list[Row]]]:
    """(role, rows that may be shown in it, the preferred one first), of bicubic, the baseline and one other: the
    finalist that the answer names, and without a confirmation the leader of the search or the best trial so far.
    """
    sign = 1 if view.larger else -1
    ranked = sorted(
        (row for row in view.trials if math.isfinite(number(row, view.metric))),
        key=lambda row: (row["status"] == "finished", row["steps"] or 0, sign * number(row, view.metric)),
        reverse=True,
    )
    of_baseline = [row for row in ranked if row["id"] in {*baselines, *view.found.baseline_ids}]
    others = [row for row in ranked if row not in of_baseline]
    if view.found.unconfirmed:
        named = [row for row in others if row["id"] == view.found.winner_id]
        role = "leader" if named else "best other" if view.found.winner_id else "best so far"
    else:
        finding, by_id = named_finding(view.found), {row["id"]: row for row in others}
        named = [by_id[id] for id in finding.trials if id in by_id]
        own = {configuration_of(row) for row in named}
        named += [row for row in others if row not in named and configuration_of(row) in own]
        role = "winner" if calls_better(view.found) else "best finalist"
    kinds = {row["kind"] for row in named}
    found = [
        ("bicubic", [row for row in view.controls if row["id"] == UNTRAINED]),
        ("baseline", sorted(of_baseline, key=lambda row: row["kind"] not in kinds)),
        (role, [*named, *others] if view.found.unconfirmed else named),
    ]
    if split == VALIDATION:
        return found
    # Only the confirmation has restored test photographs.
    return [(role, [row for row in rows if row["kind"] in ("control", CONFIRMATION)]) for role, rows in found]


def _sides(
    folder: Path, view: View, values: Mapping[tuple[str, str], Mapping[str, Row]], split: str, baselines: Sequence[str]
) -> list[Side]:
    """Bicubic, the baseline and the other one of `columns`, as far as they have pictures of this split."""
    if split == LARGER and view.found.unconfirmed:
        return []  # if there are any, they are of an earlier confirmation
    sides = []
    for role, rows in columns(view, split, baselines):
        for row in rows[: 1 if split == LARGER else _MOST_TRIED]:
            id = row["id"]
            found = larger_pictures(folder, id) if split == LARGER else kept_pictures(folder / "trials" / id, split)
            if found is not None:
                shown = _INPUT if id == UNTRAINED and _restores_nothing(found) else role
                sides.append(Side(shown, id, found, values.get((id, split), {})))
                break
            if split == LARGER:
                return []  # none, or those of an earlier winner
    return sides


def _restores_nothing(pictures: Pictures) -> bool:
    """Whether all outputs are the inputs."""
    degraded, output, _ = np.split(pictures.rows, 3, axis=2)
    return bool((degraded == output).all())


def kept_pictures(trial: Path, split: str) -> Pictures | None:
    """The pictures of a trial's newest checkpoint, or of a control; None if there are none that can be read."""
    for folder in (trial, *sorted_checkpoints(trial)):
        try:
            return Pictures.read(folder / PICTURES[split])
        except (OSError, ValueError):  # none, damaged, or removed while a sweep runs
            continue
    return None


def _cases(
    view: View, sides: Sequence[Side], values: Mapping[tuple[str, str], Mapping[str, Row]], split: str
) -> list[tuple[str, str]]:
    """(what it shows, image) of the images that tell most; one image may show several things."""
    metric, sign = _name(view.metric, split), 1 if view.larger else -1
    trained = [side for side in sides if side.id != UNTRAINED]
    reference, winner = trained[0], trained[-1]
    common = [image for image in winner.pictures.images if all(image in side.pictures.images for side in sides)]
    gains = {}
    for image in common:
        own, other = (number(side.values.get(image, {}), metric) for side in (winner, reference))
        gain = sign * (own - other if len(trained) > 1 else own)
        if math.isfinite(gain):
            gains[image] = gain
    if split == LARGER:
        side = winner.pictures.rows.shape[1]
        return [(f"{side} x {side} pixels", image) for image in common]
    if not gains:
        return [("image", image) for image in common[:4]]
    ranked = sorted(gains, key=lambda image: gains[image])
    places = {"best case": ranked[-1], "median case": ranked[len(ranked) // 2], "worst case": ranked[0]}
    chosen = {}
    for place, image in places.items():
        amount = f"{metric_text(view.metric, abs(gains[image]))}{metric_unit(view.metric)} {metric_title(view.metric)}"
        relation = "better" if gains[image] > 0 else "worse"
        than = f": {winner.role} {relation} than {reference.role} by {amount}" if len(trained) > 1 else f": {amount}"
        chosen[place + than] = image
    spread = {image: _spread(view, values, split, metric, image) for image in ranked}
    if max(spread.values()) > 0:
        chosen["values differ most between trials"] = max(spread, key=lambda image: spread[image])
    merged: dict[str, list[str]] = {}
    for title, image in chosen.items():
        merged.setdefault(image, []).append(title)
    return [("; ".join(titles), image) for image, titles in merged.items()]


def _spread(
    view: View, values: Mapping[tuple[str, str], Mapping[str, Row]], split: str, metric: str, image: str
) -> float:
    """The standard deviation of an image's values over the finished trials."""
    finished = [row["id"] for row in view.trials if row["status"] == "finished"]
    found = [number(values.get((id, split), {}).get(image, {}), metric) for id in finished]
    found = [value for value in found if math.isfinite(value)]
    return statistics.stdev(found) if len(found) > 1 else 0.0


def _case(split_title: str, case: tuple[str, str], sides: Sequence[Side], split: str, view: View) -> str:
    title, image = case
    restored = {side.id: _cell(side.pictures, image, 1) for side in sides}
    first = sides[-1].pictures
    degraded, target = _cell(first, image, 0), _cell(first, image, 2)
    errors = {id: np.abs(pixels.astype(float) - target).mean(axis=2) / 255 for id, pixels in restored.items()}
    limit = max(_LEAST_ERROR, *(float(np.percentile(error, 99.5)) for error in errors.values()))
    width = target.shape[1]
    factor = -(-_LEAST_WIDTH // width)
    figures = []
    if sides[0].role != _INPUT:
        figures.append(_figure("input", "", degraded, f"input, the degraded {image}", factor))
    for side in sides:
        numbers = _numbers(side.values.get(image, {}), (view.metric, PSNR), split)
        name = side.role if side.id == UNTRAINED else f"{side.role} {view.names[side.id]}"
        alt = f"{name}: restoration of {image}, {numbers}"
        mean = f"{255 * float(errors[side.id].mean()):.1f}"
        map_of = f"error map of {name} on {image}: mean absolute error {mean} of 255, scale to {255 * limit:.0f}"
        error = (
            f'<img class="error{_ENLARGED[factor > 1]}" alt="{escape(map_of)}" '
            f'src="{_url(_coloured(errors[side.id] / limit))}">'
            f"<figcaption>mean error {mean} of 255</figcaption>"
        )
        figures.append(_figure(side.role, numbers, restored[side.id], alt, factor, error))
    scale = (
        f'<div class="scale" aria-hidden="true"><span>error 0</span><i></i><span>{255 * limit:.0f} of 255</span></div>'
    )
    figures.append(_figure("target", "", target, f"target, the true {image}", factor, scale))
    sizes = f"--width:{factor * width}px;--narrow:{max(1, factor - 1) * width}px"
    heading = f"{split_title}: {title}"
    return (
        f'<article class="case" data-title="{escape(f"{heading}, {image}")}"><h4>{escape(title)} '
        f'<span class="note">{escape(image)}</span></h4>'
        f'<div class="strip" tabindex="0" style="{sizes}">{"".join(figures)}</div></article>'
    )


def _figure(role: str, numbers: str, pixels: np.ndarray, alt: str, factor: int, under: str = "") -> str:
    """`factor`: pixels on the page per pixel."""
    caption = f"<b>{escape(role)}</b> {escape(numbers)}"
    image = (
        f'<img class="picture{_ENLARGED[factor > 1]}" data-role="{escape(role)}" alt="{escape(alt)}" '
        f'src="{_url(Image.fromarray(pixels))}">'
    )
    return f"<figure>{image}<figcaption>{caption}</figcaption>{under}</figure>"


def _numbers(row: Row, metrics: Sequence[str], split: str) -> str:
    """ "ST-LPIPS 0.3722, PSNR 24.31 dB"."""
    texts = [
        f"{metric_title(name)} {metric_text(name, value)}{metric_unit(name)}"
        for name in dict.fromkeys(metrics)
        if math.isfinite(value := number(row, _name(name, split)))
    ]
    return ", ".join(texts)


def _name(metric: str, split: str) -> str:
    return metric if split == VALIDATION else test_name(metric)


def _cell(pictures: Pictures, image: str, column: int) -> np.ndarray:
    """The picture in a column of an image's row, (H, W, 3) uint8; the centre if it is large."""
    row = pictures.rows[pictures.images.index(image)]
    width = row.shape[1] // 3
    cell = row[:, column * width : (column + 1) * width]
    top, left = (max(0, (size - SHOWN_SIDE) // 2) for size in cell.shape[:2])
    return cell[top : top + SHOWN_SIDE, left : left + SHOWN_SIDE]


def _coloured(error: np.ndarray) -> Image.Image:
    """An error in [0, 1], (H, W), as a picture of 256 colours from black to light yellow."""
    picture = Image.fromarray((error.clip(0, 1) * 255).round().astype(np.uint8), "P")
    at, anchors = np.linspace(0, 1, 256), np.linspace(0, 1, len(_ERRORS))
    channels = [np.interp(at, anchors, [colour[k] for colour in _ERRORS]) for k in range(3)]
    picture.putpalette(np.stack(channels, axis=1).round().astype(np.uint8).tobytes())
    return picture


def _url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
