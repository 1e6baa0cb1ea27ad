"""A finished `latent_diffusion` in diffusers' layout: `python -m trainables.export RUN/best FOLDER`.

    FOLDER/unet/                              the UNet, widened, its LoRA merged in
    FOLDER/vae/, scheduler/, empty_prompt...  as the base has them; the schedule says what is predicted now
    FOLDER/pytorch_lora_weights.safetensors   the LoRA alone, by its public names, where there is one

The folder is a base (`--set base.weights=FOLDER`) for further training, and what diffusers loads part by part. It takes
as much disk as the base.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from trainables.base_model import EMPTY_PROMPT, find_base, load_empty_prompt, load_scheduler_config
from trainables.base_schedule import zero_terminal_snr
from trainables.build import build_method
from trainables.errors import InputError
from trainables.finished import finished_settings
from trainables.latent_diffusion import LatentDiffusion
from trainables.networks.stable_diffusion import lora_metadata, lora_state_dict, merge_lora
from trainables.presets import preset
from trainables.settings import override

LORA = "pytorch_lora_weights.safetensors"


def export(finished: Path, folder: Path) -> None:
    """Writes the finished trial in `finished` to `folder`, which must not exist.

    Raises:
        InputError: not a finished `latent_diffusion`, or `folder` is there.
    """
    if folder.exists():
        raise InputError(f"{folder}: is there already; give a folder that is not")
    found = finished_settings(finished, "latent_diffusion", str(finished))
    settings = override(preset("sample").trial, {**found, "checkpoint": str(finished), "training.max_steps": 0})
    method: LatentDiffusion = build_method(settings, torch.device("cpu"))  # type: ignore[assignment]  # settings say so
    base = find_base(settings.base.weights, settings.base.revision)
    unet: UNet2DConditionModel = method.networks["unet"]
    written = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    if settings.lora.rank:
        save_file({k: v.contiguous() for k, v in lora_state_dict(unet).items()}, written / LORA, lora_metadata(unet))
        merge_lora(unet)
    unet.save_pretrained(written / "unet")
    shutil.copytree(base / "vae", written / "vae")
    diffusion = settings.diffusion
    scheduler = DDIMScheduler.from_config(
        load_scheduler_config(base),
        prediction_type=method.diffusion.prediction_type,
        timestep_spacing=diffusion.spacing,
        rescale_betas_zero_snr=zero_terminal_snr(base, diffusion),
        set_alpha_to_one=True,  # our sampler ends at x_0
    )
    scheduler.save_pretrained(written / "scheduler")
    save_file({"empty_prompt": load_empty_prompt(base).contiguous()}, written / EMPTY_PROMPT)
    written.rename(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("finished", type=Path, help="a finished trial, such as the best/ of a run")
    parser.add_argument("folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    try:
        export(arguments.finished.expanduser(), arguments.folder.expanduser())
    except InputError as error:
        parser.exit(InputError.exit_status, f"{parser.prog}: error: {error}\n")
    print(f"written to {arguments.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
