"""Measures a finished trial on the sample's whole test photographs, restored as `trainables.restore` does.

`python -m trainables.assets winner --finished results/sinsr_loss_ratios/RUN/best` prints a table of MODEL_CARD.md. The
photographs trained nothing, neither what ships nor a sweep's trials. They are degraded as in the preset `sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import torch

from trainables.assets.crops import batch_pixels, to_images
from trainables.assets.held_out import colour_error, mean_psnr
from trainables.assets.teacher import held_out_inputs
from trainables.common.errors import InputError
from trainables.images.sources.photographs import load_photographs
from trainables.images.tensors import upsample
from trainables.metrics.st_lpips import STLPIPS
from trainables.restorer import Restorer, picture_key, restoration_settings
from trainables.settings import SAMPLE
from trainables.settings.presets import preset

_SEED = 0


def measure_winner(finished: Path, log: Callable[[str], None] = print) -> None:
    """Prints PSNR, ST-LPIPS and colour error of each photograph, enlarged bicubically and restored.

    Raises:
        InputError: not a finished trial, or one that does not enlarge as much as `sample`.
    """
    settings, degraded_as = restoration_settings(finished), preset("sample").trial
    if settings.pairs.scale != degraded_as.pairs.scale:
        raise InputError(
            f"--finished {finished}: restores with pairs.scale={settings.pairs.scale}; expected a trial of the preset "
            f"sample, with {degraded_as.pairs.scale}"
        )
    restorer, metric = Restorer(settings, torch.device("cpu")), STLPIPS("alex")
    log(
        "| photograph | bicubic: PSNR, dB | ST-LPIPS | restored: PSNR, dB | ST-LPIPS | colour error, % |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    rows: list[tuple[float, ...]] = []
    for photograph in load_photographs(SAMPLE, "test"):
        unit = settings.pairs.scale
        height, width = (side // unit * unit for side in photograph.pixels.shape[:2])
        target = to_images([photograph.pixels[:height, :width]])
        degraded = held_out_inputs(target, degraded_as)
        (pixels,) = batch_pixels(degraded)
        restored = to_images([restorer(pixels, picture_key(_SEED, photograph.name, pixels))])
        measured = (upsample(degraded, unit), restored)
        psnrs = [mean_psnr(image, target) for image in measured]
        distances = [float(metric(image.clamp(-1, 1), target).mean()) for image in measured]
        rows.append((psnrs[0], distances[0], psnrs[1], distances[1], 100 * colour_error(restored, target)))
        log(_line(photograph.name, rows[-1]))
    log(_line("mean", [fmean(column) for column in zip(*rows, strict=True)]))
    nearer = sum(restored < given for _, given, _, restored, _ in rows)
    log(f"\nBetter than bicubic in ST-LPIPS: {nearer} of {len(rows)}")


def _line(name: str, row: Sequence[float]) -> str:
    psnr, distance, restored_psnr, restored_distance, colour = row
    return f"| {name} | {psnr:.2f} | {distance:.3f} | {restored_psnr:.2f} | {restored_distance:.3f} | {colour:.2f} |"
