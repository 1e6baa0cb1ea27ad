"""Finding and loading a base: the Stable Diffusion parts that the latent methods start from, in diffusers layout.

A base is a folder with `vae/`, `unet/`, `scheduler/` and the conditioning of the empty prompt: either
`empty_prompt.safetensors`, or `text_encoder/` and `tokenizer/` to compute it. Only JSON, tokenizer files and
safetensors are read or downloaded. Finding a base and reading its shape do not import torch. docs/base_models.md lists
what fits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.common.errors import InputError, one_line
from trainables.common.paths import path_of
from trainables.settings import SHIPPED

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

SHIPPED_BASE = Path(__file__).parents[1] / "assets" / "stable_diffusion_sample"
EMPTY_PROMPT = "empty_prompt.safetensors"
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
PART_WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARDS = "diffusion_pytorch_model.safetensors.index.json"
_PIPELINE = "model_index.json"
_ENCODER = ("text_encoder/model.safetensors", "tokenizer/tokenizer_config.json")
_FETCHED = [
    *(f"{part}/*.json" for part in ("vae", "unet", "scheduler", "text_encoder", "tokenizer")),
    *(f"{part}/{name}" for part in ("vae", "unet") for name in (PART_WEIGHTS, "diffusion_pytorch_model-*.safetensors")),
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    EMPTY_PROMPT,
    _PIPELINE,
    # A ControlNet is at the top of its own repository.
    "config.json",
    PART_WEIGHTS,
]
_LAYOUT = (
    f"a folder in diffusers layout with vae/, unet/, scheduler/ and {EMPTY_PROMPT} or text_encoder/ and tokenizer/, "
    "see docs/base_models.md"
)


_Accepted = tuple[str, Callable[[Any], bool]]  # (description, check of a value)


def _whole(least: int) -> _Accepted:
    # Not isinstance: a bool is an instance of int.
    return f"a whole number, {least} or more", lambda value: type(value) is int and value >= least


def _number_below(limit: float) -> _Accepted:
    return (
        "a number above 0" if limit == math.inf else f"a number above 0 and below {limit:g}",
        lambda value: type(value) in (int, float) and 0 < value < limit,
    )


_IMAGE_CHANNELS: _Accepted = ("3, the channels of images", lambda value: value == 3)
_WIDTHS: _Accepted = (
    "a list of whole numbers, 1 or more",
    lambda value: isinstance(value, list) and bool(value) and all(_whole(1)[1](width) for width in value),
)
_FLAG: _Accepted = ("true or false", lambda value: isinstance(value, bool))
_SCHEDULER = "scheduler/scheduler_config.json"
# The accepted values of the keys that are read, if a file has them.
_READ: dict[str, dict[str, _Accepted]] = {
    "vae/config.json": {
        "in_channels": _IMAGE_CHANNELS,
        "out_channels": _IMAGE_CHANNELS,
        "latent_channels": _whole(1),
        "block_out_channels": _WIDTHS,
        "scaling_factor": _number_below(math.inf),
    },
    "unet/config.json": {
        "in_channels": _whole(1),
        "out_channels": _whole(1),
        "block_out_channels": _WIDTHS,
        "cross_attention_dim": _whole(1),
        "norm_num_groups": _whole(1),
    },
    _SCHEDULER: {
        "num_train_timesteps": _whole(2),
        "beta_start": _number_below(1),
        "beta_end": _number_below(1),
        "steps_offset": _whole(0),
        "rescale_betas_zero_snr": _FLAG,
    },
}


@dataclass(frozen=True)
class BaseShape:
    """The configuration of a base, from its files.

    Attributes:
        latent_channels: of the autoencoder's latents, and of the UNet's output.
        factor: image pixels per latent pixel, along one side.
        scaling_factor: latents are the autoencoder's mean times this factor.
        in_channels: of the UNet: `latent_channels`, or twice that if the conditioning latent comes first.
        cross_attention_dim: width of a token of the prompt's conditioning.
        prediction_type: what the UNet was trained to predict, one of `PREDICTION_TYPES`.
        num_train_timesteps: length of the noise schedule.
        norm_groups: groups of the UNet's normalisations.
    """

    latent_channels: int
    factor: int
    scaling_factor: float
    in_channels: int
    out_channels: int
    cross_attention_dim: int
    prediction_type: str
    num_train_timesteps: int
    norm_groups: int


def find_base(weights: str, revision: str = "", allow_download: bool = True, setting: str = "base.weights") -> Path:
    """The folder of a base or of a ControlNet.

    Args:
        weights: "shipped", a folder in diffusers layout, or a hub id (`owner/name`). A cached base is used without
            asking the hub, so a branch does not change after its first download.
        revision: commit, tag or branch of a hub id; empty for its main branch.
        allow_download: download what the cache lacks.
        setting: the setting to name in errors.

    Raises:
        InputError: no such folder, or a hub id that is not cached and cannot be downloaded; the message has the command
            that downloads it.
    """
    folder = SHIPPED_BASE if weights == SHIPPED else path_of(setting, weights) if weights else Path()
    if weights and folder.is_dir():
        if revision:
            name = setting.replace("weights", "revision")
            raise InputError(f"{name}={revision}: expected none, since {setting}={weights} is a folder, not a hub id")
        return folder.absolute()
    if folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights):
        raise InputError(f"{setting}={weights}: expected {SHIPPED!r}, {_LAYOUT}, or a hub id such as owner/name")

    from huggingface_hub import snapshot_download

    reason = "it is not in the hub's cache"
    for offline in (True, False) if allow_download else (True,):
        try:
            found = Path(
                snapshot_download(weights, revision=revision or None, allow_patterns=_FETCHED, local_files_only=offline)
            )
        except Exception as error:  # of the hub, the network or the disk
            if not offline:
                reason = one_line(error).rstrip(".")
            continue
        # Other programs cache single parts; the hub's library takes them for the whole.
        absent = _absent(found)
        if not absent or ((found / "config.json").is_file() and (found / PART_WEIGHTS).is_file()):
            return found
        reason = f"it has no {', '.join(absent)}"
    arguments = ", ".join(repr(argument) for argument in (weights, revision) if argument)
    raise InputError(
        f"{setting}={weights}: no such folder, and as a hub id: {reason}. Expected {SHIPPED!r}, {_LAYOUT}, or a hub id "
        "fetched before with: python -c "
        f'"from trainables.pretrained.base_model import find_base; find_base({arguments})"'
    )


def read_shape(folder: Path) -> BaseShape:
    """The shape of a base, from its configuration files alone.

    Raises:
        InputError: parts are missing, are not what their names say, or do not fit each other.
    """
    if absent := _absent(folder):
        single = (folder / "config.json").is_file() and _read_json(folder, "config.json").get("_class_name")
        raise unusable(folder, f"a single {single}" if single else f"it has no {', '.join(absent)}")
    if (folder / _PIPELINE).is_file():
        pipeline = str(_read_json(folder, _PIPELINE).get("_class_name"))
        # InstructPix2Pix has as many channels as Marigold, but its noisy latent comes first, its conditioning unscaled.
        if "InstructPix2Pix" in pipeline or "Inpaint" in pipeline:
            raise unusable(folder, f"{_PIPELINE} names {pipeline}, whose UNet takes other latents than Marigold's")
    for part in ("vae", "unet"):
        if (folder / part / SHARDS).is_file():
            files = _read_json(folder, f"{part}/{SHARDS}").get("weight_map")
            if not isinstance(files, dict) or not all(
                isinstance(name, str) and (folder / part / name).is_file() for name in files.values()
            ):
                raise unusable(folder, f"the weight_map of {part}/{SHARDS} names missing files")
    vae = _read_config(folder, "vae", "AutoencoderKL")
    unet = _read_config(folder, "unet", "UNet2DConditionModel")
    scheduler = load_scheduler_config(folder)
    # For missing keys, diffusers' defaults apply.
    shape = BaseShape(
        latent_channels=vae.get("latent_channels", 4),
        factor=2 ** (len(vae.get("block_out_channels", (64,))) - 1),
        scaling_factor=vae.get("scaling_factor", 0.18215),
        in_channels=unet.get("in_channels", 4),
        out_channels=unet.get("out_channels", 4),
        cross_attention_dim=unet.get("cross_attention_dim", 1280),
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
        norm_groups=unet.get("norm_num_groups", 32),
    )
    channels = shape.latent_channels
    if shape.out_channels != channels:
        raise unusable(folder, f"unet/ predicts {shape.out_channels} channels, the latents of vae/ have {channels}")
    if shape.in_channels not in (channels, 2 * channels):
        raise unusable(folder, f"unet/ takes {shape.in_channels} channels, not {channels} or {2 * channels}")
    if vae.get("shift_factor") or vae.get("latents_mean"):
        raise unusable(folder, "vae/ shifts its latents, which Stable Diffusion 1 and 2 do not")
    if any(unet.get(name) is not None for name in ("addition_embed_type", "class_embed_type", "num_class_embeds")):
        raise unusable(folder, "unet/ is conditioned on more than a prompt, as Stable Diffusion XL is")
    if shape.prediction_type not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise unusable(folder, f"scheduler/ has prediction_type {shape.prediction_type!r}, not one of {known}")
    return shape


def load_scheduler_config(folder: Path) -> dict[str, Any]:
    """The noise schedule's configuration, for `from_config` of diffusers' schedulers.

    Raises:
        InputError: it cannot be read, or has values of the wrong type or range.
    """
    return _checked(folder, _SCHEDULER, _read_json(folder, _SCHEDULER))


def load_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet in float32, in evaluation mode on the CPU.

    Raises:
        InputError: no UNet, or weights that do not match its parameters exactly or are not finite.
    """
    from diffusers import UNet2DConditionModel

    return _load(UNet2DConditionModel, folder, "unet", "base.weights")


def load_vae(folder: Path) -> AutoencoderKL:
    """The KL autoencoder in float32, in evaluation mode on the CPU.

    Raises:
        InputError: no KL autoencoder, or weights that do not match its parameters exactly or are not finite.
    """
    from diffusers import AutoencoderKL

    return _load(AutoencoderKL, folder, "vae", "base.weights")


def load_controlnet(folder: Path) -> ControlNetModel:
    """A ControlNet in float32, in evaluation mode on the CPU; `folder` is its own, with `config.json`.

    Raises:
        InputError: no ControlNet, or weights that do not match its parameters exactly or are not finite.
    """
    from diffusers import ControlNetModel

    return _load(ControlNetModel, folder, ".", "controlnet.weights")


def has_text_encoder(folder: Path) -> bool:
    """Whether a base can encode prompts."""
    return all((folder / name).is_file() for name in _ENCODER)


def _load(model_class: Any, folder: Path, part: str, setting: str) -> Any:
    import torch

    _read_config(folder, part, model_class.__name__, setting)
    try:
        model, report = model_class.from_pretrained(
            str(folder / part),
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # the readers raise many types for a file that is not a checkpoint
        raise unusable(folder, f"{part}/ cannot be loaded: {one_line(error)}", setting) from None
    for what, names in (("lacks", report["missing_keys"]), ("has unknown", report["unexpected_keys"])):
        if names:  # diffusers would only warn
            raise unusable(folder, f"{part}/ {what} weights: {one_line(', '.join(sorted(names)))}", setting)
    # The extremes are NaN if any value is, and take a tenth of the time of checking every value.
    broken = [n for n, values in model.state_dict().items() if not torch.stack(values.aminmax()).isfinite().all()]
    if broken:
        named = one_line(", ".join(broken))
        raise InputError(f"{setting}={folder}: {part}/ has infinite or NaN weights: {named}; expected finite ones")
    model.register_to_config(_name_or_path="")  # else this machine's path is saved with every model trained from it
    return model.eval()


def _absent(folder: Path) -> list[str]:
    """The files of a base that `folder` lacks."""
    absent = [name for name in ("vae/config.json", "unet/config.json", _SCHEDULER) if not (folder / name).is_file()]
    for part in ("vae", "unet"):
        if not any((folder / part / name).is_file() for name in (PART_WEIGHTS, SHARDS)):
            absent.append(f"{part}/{PART_WEIGHTS}")
    if not (folder / EMPTY_PROMPT).is_file() and not has_text_encoder(folder):
        absent.append(f"{EMPTY_PROMPT} (or {' and '.join(_ENCODER)})")
    return absent


def _read_config(folder: Path, part: str, expected: str, setting: str = "base.weights") -> dict[str, Any]:
    config = _read_json(folder, f"{part}/config.json", setting)
    if (found := config.get("_class_name")) != expected:
        raise unusable(folder, f"{part}/config.json names the class {found}, not {expected}", setting)
    return _checked(folder, f"{part}/config.json", config)


def _checked(folder: Path, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Refuses values in the base's file `name` that `_READ` does not accept."""
    for key, (accepted, fits) in _READ.get(name, {}).items():
        if key in config and not fits(config[key]):
            found = one_line(json.dumps(config[key]))
            raise InputError(f"base.weights={folder}: {name}: {key} is {found}; expected {accepted}")
    return config


def _read_json(folder: Path, name: str, setting: str = "base.weights") -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unusable(folder, f"{name} cannot be read: {one_line(error)}", setting) from None
    if not isinstance(content, dict):
        raise unusable(folder, f"{name} is not a configuration", setting)
    return content


def unusable(folder: Path, problem: str, setting: str = "base.weights") -> InputError:
    """The error for a base, or a ControlNet, with this problem."""
    expected = _LAYOUT if setting == "base.weights" else "the diffusers folder of a ControlNet"
    return InputError(f"{setting}={folder}: {problem}; expected {expected}")
