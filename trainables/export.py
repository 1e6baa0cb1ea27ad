"""Exports a finished `latent_diffusion` to diffusers' layout: `python -m trainables.export RUN/best FOLDER`.

    FOLDER/unet/                              the widened UNet, with merged LoRA
    FOLDER/vae/, scheduler/, empty_prompt...  from the base; the scheduler has the trained prediction type, the
                                              prompt is the one it was trained with
    FOLDER/pytorch_lora_weights.safetensors   only the LoRA, with its public names, if the trial has one

The folder is a base for further training (`--set base.weights=FOLDER`), and diffusers can load each part. It takes as
much disk space as the base.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from trainables.common.command import ExitStatus, command_flags, exit_statuses, run_command
from trainables.common.errors import InputError, one_line
from trainables.common.flags import Flags
from trainables.common.machine import limit_threads
from trainables.common.paths import check_writable, path_of
from trainables.pretrained.fetched import finished_at
from trainables.pretrained.finished_trial import finished_settings
from trainables.settings import override
from trainables.settings.presets import preset

if TYPE_CHECKING:
    from trainables.methods.latent_diffusion import LatentDiffusion

PROG, DESCRIPTION = "python -m trainables.export", "Exports a finished latent_diffusion to diffusers' layout."
LORA = "pytorch_lora_weights.safetensors"
_WHOLE_WEIGHTS = {"training.max_steps": 0, "training.precision": "fp32"}  # a lower precision rounds the frozen base


def export(finished: Path, folder: Path) -> None:
    """Writes the finished trial in `finished` to `folder`, which must not exist.

    Raises:
        InputError: not a finished `latent_diffusion`, or `folder` exists or cannot be written.
    """
    if folder.exists():
        raise InputError(f"FOLDER {folder}: already exists; choose a new folder")
    check_writable("FOLDER", folder)
    found = finished_settings(finished, "latent_diffusion", f"FINISHED {finished}")
    settings = override(preset("sample").trial, {**found, "checkpoint": str(finished), **_WHOLE_WEIGHTS})

    # These imports take seconds; errors above are reported without them.
    import torch

    from trainables.methods.build import build_method

    limit_threads()
    method: LatentDiffusion = build_method(settings, torch.device("cpu"))  # type: ignore[assignment]  # settings say so
    written = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(written, ignore_errors=True)
    try:
        written.mkdir(parents=True)
        _write(method, written)
        written.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors raises its own error for a full disk
        raise InputError(f"FOLDER {folder}: cannot be written ({one_line(error)})") from None
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _write(method: LatentDiffusion, folder: Path) -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from safetensors.torch import save_file

    from trainables.networks.stable_diffusion import lora_metadata, lora_state_dict, merge_lora
    from trainables.pretrained.base_model import EMPTY_PROMPT, find_base, load_scheduler_config
    from trainables.pretrained.base_schedule import zero_terminal_snr

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
    save_file({"empty_prompt": method.prompts.positive.contiguous()}, folder / EMPTY_PROMPT)


def parser(prog: str = PROG) -> Flags:
    flags = command_flags(prog, DESCRIPTION, exit_statuses())
    flags.add_argument(
        "finished", metavar="FINISHED", help="a finished trial, such as the best/ of a run; a folder or URI"
    )
    flags.add_argument("folder", metavar="FOLDER", help="a new folder for the export")
    return flags


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Runs the command line; returns the exit status."""

    def work(flags: argparse.Namespace) -> int:
        folder = path_of("FOLDER", flags.folder)
        export(finished_at("FINISHED", flags.finished), folder)
        print(f"written to {folder}")
        return ExitStatus.DONE

    return run_command(parser(prog), arguments, work, "nothing was exported")


if __name__ == "__main__":
    raise SystemExit(main())
