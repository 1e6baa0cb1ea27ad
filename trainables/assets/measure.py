"""Measures the networks of a build on photographs that they have not seen: the numbers of MODEL_CARD.md.

`python -m trainables.assets measure` prints Markdown tables. Two kinds of images, both of all held-out
photographs: 64 px crops with the most detail, and whole photographs, cut to sides that are multiples of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from diffusers import VQModel
from safetensors.torch import load_file
from torch import Tensor

from trainables.assets.crops import to_images
from trainables.assets.held_out import colour_error, held_out_crops, held_out_photographs, mean_psnr
from trainables.assets.stable_diffusion import NOISE_MEASURED_AT, base_scheduler, encode_crops, noise_errors
from trainables.assets.teacher import held_out_inputs, teacher_settings
from trainables.assets.work import WorkFolder
from trainables.diffusion.resshift import ResShiftDiffusion
from trainables.images.tensors import upsample
from trainables.metrics.st_lpips import STLPIPS
from trainables.networks.autoencoder import decode, encode, load_vq_f4
from trainables.networks.swin_unet import SwinUNet
from trainables.pretrained.base_model import load_unet, load_vae
from trainables.pretrained.prompt_encoder import load_empty_prompt
from trainables.pretrained.resshift import build_diffusion, build_network

CROPS_EACH = 12
WHOLE_MULTIPLE = 32
Images = Sequence[Tensor]  # (N, 3, H, W) each, in [-1, 1]


@dataclass(frozen=True)
class MeasuredRow:
    """Means over images. `psnr`: dB. `colour_error`: share of the full range. `latent_error`: mean squared, or None."""

    psnr: float
    st_lpips: float
    colour_error: float
    latent_error: float | None = None


@torch.no_grad()
def measure(work: WorkFolder, log: Callable[[str], None] = print) -> None:
    """Prints what the results in the work folder reach, as far as they exist."""
    whole = [_whole(to_images([pixels])) for pixels in held_out_photographs().values()]
    kinds: dict[str, Images] = {
        f"crops of 64 px, {CROPS_EACH} of each": held_out_crops(CROPS_EACH).split(16),
        "whole photographs": whole,
    }
    for kind, images in kinds.items():
        log(f"\nHeld-out photographs ({', '.join(held_out_photographs())}), {kind}:\n")
        log("| | PSNR, dB | ST-LPIPS | colour error, % | latent error |\n|---|---:|---:|---:|---:|")
        for name, row in _rows(work, images).items():
            latent = "" if row.latent_error is None else f"{row.latent_error:.4f}"
            log(f"| {name} | {row.psnr:.2f} | {row.st_lpips:.3f} | {100 * row.colour_error:.2f} | {latent} |")
    if (work.base / "unet").is_dir():
        _measure_noise(work, log)


def _rows(work: WorkFolder, images: Images) -> dict[str, MeasuredRow]:
    rows: dict[str, MeasuredRow] = {}
    metric = STLPIPS("alex")
    if (work.base / "vae").is_dir():
        vae = load_vae(work.base)
        rows["KL autoencoder, from the target"] = _row(
            metric, images, (vae.decode(vae.encode(each).latent_dist.mode()).sample for each in images)
        )
    if not work.autoencoder.is_file():
        return rows
    vq, settings = load_vq_f4(work.autoencoder), teacher_settings(work.autoencoder)
    scale = settings.pairs.scale
    inputs = [held_out_inputs(each, settings) for each in images]
    upsampled = [upsample(each, scale) for each in inputs]
    truth, start = [encode(vq, each) for each in images], [encode(vq, each) for each in upsampled]
    rows["VQ-f4 autoencoder, from the target"] = _row(metric, images, (decode(vq, each) for each in truth))
    rows["bicubic"] = _row(metric, images, upsampled)
    rows["the input's own latent, decoded"] = _latent_row(metric, images, vq, start, truth)
    if work.teacher.is_file():
        teacher = build_network(settings.network)
        teacher.load_state_dict(load_file(work.teacher))
        diffusion = build_diffusion(settings.resshift)
        for steps, name in ((1, "teacher, 1 step"), (diffusion.steps, f"teacher, {diffusion.steps} steps")):
            latents = [_restore(teacher.eval(), diffusion, x, y, steps) for x, y in zip(inputs, start, strict=True)]
            rows[name] = _latent_row(metric, images, vq, latents, truth)
    return rows


def _restore(teacher: SwinUNet, diffusion: ResShiftDiffusion, degraded: Tensor, start: Tensor, steps: int) -> Tensor:
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    sample = diffusion.predict_from_prior if steps == 1 else diffusion.sample_ddim
    return sample(lambda x, t: teacher(x, t, lq=degraded), start, noise)


def _latent_row(metric: STLPIPS, images: Images, vq: VQModel, latents: Images, truth: Images) -> MeasuredRow:
    row = _row(metric, images, (decode(vq, each) for each in latents))
    errors = [float((a - b).square().mean()) for a, b in zip(latents, truth, strict=True)]
    return MeasuredRow(row.psnr, row.st_lpips, row.colour_error, _mean(errors, images))


def _row(metric: STLPIPS, images: Images, restored: Iterable[Tensor]) -> MeasuredRow:
    psnrs, distances, colours = [], [], []
    for image, target in zip(restored, images, strict=True):
        psnrs.append(mean_psnr(image, target))
        distances.append(float(metric(image.clamp(-1, 1), target).mean()))
        colours.append(colour_error(image.clamp(-1, 1), target))
    return MeasuredRow(_mean(psnrs, images), _mean(distances, images), _mean(colours, images))


def _mean(values: Sequence[float], images: Images) -> float:
    """Over images, where each value is the mean of a batch."""
    counts = [len(batch) for batch in images]
    return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)


def _whole(image: Tensor) -> Tensor:
    height, width = (side // WHOLE_MULTIPLE * WHOLE_MULTIPLE for side in image.shape[2:])
    return image[:, :, :height, :width].contiguous()


def _measure_noise(work: WorkFolder, log: Callable[[str], None]) -> None:
    vae, unet, empty_prompt = load_vae(work.base), load_unet(work.base), load_empty_prompt(work.base)
    latents = encode_crops(vae, held_out_crops(CROPS_EACH)) * vae.config.scaling_factor
    found = {t: noise_errors(unet, base_scheduler(), latents, empty_prompt, t) for t in NOISE_MEASURED_AT}
    log(f"\n| mean squared error at timestep | {' | '.join(map(str, found))} |\n|---|{'---:|' * len(found)}")
    for name, label in (("unet", "noise predictor"), ("input", "noised latents"), ("scaled", "best multiple of them")):
        log(f"| {label} | {' | '.join(f'{errors[name]:.4f}' for errors in found.values())} |")
