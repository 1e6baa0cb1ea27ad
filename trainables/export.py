"""A finished `latent_diffusion` in diffusers' layout: `python -m trainables.export RUN/best FOLDER`.

    FOLDER/unet/                              the UNet, widened, its LoRA merged in
    FOLDER/vae/, scheduler/, empty_prompt...  as the base has them; the schedule says what is predicted now
    FOLDER/pytorch_lora_weights.safetensors   the LoRA alone, by its public names, where there is one

The folder is a base (`--set base.weights=FOLDER`) for further training, and what diffusers loads part by part. It takes
as much disk as the base.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainables.common.errors import INTERRUPTED, InputError
from trainables.common.flags import Flags
from trainables.common.paths import check_writable, path_of
from trainables.methods.build import build_method
from trainables.methods.latent_diffusion import LatentDiffusion
from trainables.networks.stable_diffusion import lora_metadata, lora_state_dict, merge_lora
from trainables.pretrained.base_model import EMPTY_PROMPT, find_base, load_empty_prompt, load_scheduler_config
from trainables.pretrained.base_schedule import zero_terminal_snr
from trainables.pretrained.finished_trial import finished_settings
from trainables.settings import override
from trainables.settings.presets import preset

LORA = "pytorch_lora_weights.safetensors"


def export(finished: Path, folder: Path) -> None:
    """Writes the finished trial in `finished` to `folder`, which must not exist.

    Raises:
        InputError: not a finished `latent_diffusion`, or `folder` is there or cannot be written.
    """
    if folder.exists():
        raise InputError(f"FOLDER {folder}: is there already; expected one that is not")
    check_writable("FOLDER", folder)
    found = finished_settings(finished, "latent_diffusion", f"FINISHED {finished}")
    settings = override(preset("sample").trial, {**found, "checkpoint": str(finished), "training.max_steps": 0})
    method: LatentDiffusion = build_method(settings, torch.device("cpu"))  # type: ignore[assignment]  # settings say so
    written = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(written, ignore_errors=True)
    try:
        written.mkdir(parents=True)
        _write(method, written)
        written.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise InputError(f"FOLDER {folder}: cannot be written ({' '.join(str(error).split())})") from None
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _write(method: LatentDiffusion, folder: Path) -> None:
    base = find_base(method.settings.base.weights, method.settings.base.revision)
    unet: UNet2DConditionModel = method.networks["unet"]
    if method.settings.lora.rank:
        save_file({k: v.contiguous() for k, v in lora_state_dict(unet).items()}, folder / LORA, lora_metadata(unet))
        merge_lora(unet)
    unet.save_pretrained(folder / "unet")
    shutil.copytree(base / "vae", folder / "vae")
    scheduler = DDIMScheduler.from_config(
        load_scheduler_config(base),
        prediction_type=method.diffusion.prediction_type,
        timestep_spacing=method.settings.diffusion.spacing,
        rescale_betas_zero_snr=zero_terminal_snr(base, method.settings.diffusion),
        set_alpha_to_one=True,  # our sampler ends at x_0
    )
    scheduler.save_pretrained(folder / "scheduler")
    save_file({"empty_prompt": load_empty_prompt(base).contiguous()}, folder / EMPTY_PROMPT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = Flags(prog="python -m trainables.export", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("finished", metavar="FINISHED", help="a finished trial, such as the best/ of a run")
    parser.add_argument("folder", metavar="FOLDER", help="where to write")
    try:
        flags = parser.parse_args(arguments)
        folder = path_of("FOLDER", flags.folder)
        export(path_of("FINISHED", flags.finished), folder)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return InputError.exit_status
    except KeyboardInterrupt:
        print("interrupted; nothing was exported", file=sys.stderr)
        return INTERRUPTED
    print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
