"""LoRA files of other programs, with the names of diffusers' `pytorch_lora_weights.safetensors`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from trainables.networks.stable_diffusion import LORA_METADATA, lora_state_dict
from trainables.pretrained.weights_file import read_safetensors

DIFFUSERS, PEFT, PEFT_CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
_KOHYA = "lora_unet_"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OF_ADAPTER = re.compile(r"(?<=\.lora_[AB])\.([^.]+)(?=\.weight$)")
_PICKLED_NAMES = ("pytorch_lora_weights.bin", "adapter_model.bin")  # of diffusers and peft
_EXPECTED = (
    "expected a LoRA of a UNet in safetensors, with the names of diffusers (unet.*), peft or kohya (lora_unet_*)"
)
_FOREIGN = {
    "^(lora_transformer_|transformer\\.)": "it updates a transformer, such as Flux's or Stable Diffusion 3's",
    "^diffusion_model\\.": "these are ComfyUI's names",
    "hada_|lokr_": "it is a LoHa or LoKr of LyCORIS",
}
"""What names tell about files that are not read."""
_TEXT_ENCODERS = ("lora_te_", "lora_te1_", "lora_te2_", "text_encoder.", "text_encoder_2.")


def read_lora(path: Path, unet: UNet2DConditionModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The updates in a file, and its metadata as `lora_differences` takes it.

    Args:
        path: a safetensors file in the spelling of diffusers, peft or kohya's scripts; or a folder with one of them.
        unet: after `add_lora`; kohya's names can only be read with its layers.

    Raises:
        ValueError: no such file, one of `torch.save` or with other names, updates of the text encoder, DoRA, or layers
            with several ranks or scales.
    """
    file = _file_of(path)
    if file.suffix in _PICKLED:
        raise ValueError(f"{file.name} is a file of torch.save; {_EXPECTED}")
    state = read_safetensors(file)
    with safe_open(file, "pt") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
    if others := [name for name in state if name.startswith(_TEXT_ENCODERS)]:
        raise ValueError(
            f"{len(others)} of its weights update the text encoder, such as {others[0]}; expected updates of the UNet "
            "alone, because the prompt is empty"
        )
    if others := [name for name in state if "dora_scale" in name or "magnitude_vector" in name]:
        raise ValueError(f"{others[0]}: it is a DoRA; expected a LoRA")
    for start, what in _FOREIGN.items():
        if others := [name for name in state if re.search(start, name)]:
            raise ValueError(f"{others[0]}: {what}; {_EXPECTED}")
    if any(name.startswith(_KOHYA) for name in state):
        state = _from_kohya(state, unet)
    state = _of_one_adapter(state)
    alphas = {name: float(value) for name, value in state.items() if name.endswith(".alpha")}
    updates = {_public(name): value for name, value in state.items() if name not in alphas}
    if (config := file.with_name(PEFT_CONFIG)).is_file() and LORA_METADATA not in metadata:
        metadata |= _as_metadata(json.loads(config.read_text(encoding="utf-8")))
    if LORA_METADATA not in metadata:
        metadata |= _from_shapes(updates, alphas)
    return updates, metadata


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    usual = [path / name for name in (DIFFUSERS, PEFT) if (path / name).is_file()]
    found = usual or sorted(path.glob("*.safetensors"))
    if not found and (pickled := [path / name for name in _PICKLED_NAMES if (path / name).is_file()]):
        return pickled[0]
    if len(found) != 1:
        raise ValueError(f"a folder with {len(found)} LoRA files; expected one {DIFFUSERS} or {PEFT}, or name the file")
    return found[0]


def _from_kohya(state: Mapping[str, Tensor], unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Kohya writes the dots in a layer's name as underscores, so the UNet's own layers tell where they were.

    Names of the original Stable Diffusion code (`input_blocks_1_1`) are converted by diffusers.
    """
    layers = {name.removeprefix("unet.").rpartition(".lora.")[0] for name in lora_state_dict(unet)}
    written = {f"{_KOHYA}{layer.replace('.', '_')}": layer for layer in layers}
    if any(name.partition(".")[0] not in written for name in state):
        if any(re.match(rf"{_KOHYA}(input|middle|output)_block", name) for name in state):
            converted, alphas = StableDiffusionPipeline.lora_state_dict(dict(state), unet_config=unet.config)
            return {**converted, **(alphas or {})}
        unknown = sorted({name.partition(".")[0] for name in state} - written.keys())
        raise ValueError(f"{len(unknown)} of its layers are not among lora.targets, such as {unknown[0]}")
    named = ((*name.partition("."), value) for name, value in state.items())
    return {
        f"unet.{written[layer]}.{rest.replace('lora_down', 'lora.down').replace('lora_up', 'lora.up')}": value
        for layer, _, rest, value in named
    }


def _of_one_adapter(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the names that peft gives to adapters, as OSEDiff's code saves them: one for each part of a UNet.

    Raises:
        ValueError: two adapters update the same layer.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if (plain := _OF_ADAPTER.sub("", name)) in found:
            adapters = sorted({match[1] for other in state if (match := _OF_ADAPTER.search(other))})
            raise ValueError(f"{plain}: of several adapters, {', '.join(adapters)}; save the one that is meant alone")
        found[plain] = value
    return found


def _public(name: str) -> str:
    """The name in diffusers' file, from that in peft's or in older files of diffusers."""
    name = name.removeprefix("base_model.model.")
    name = name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
    name = re.sub(r"(?:\.processor)?\.to_(q|k|v)_lora\.", r".to_\1.lora.", name)
    name = re.sub(r"(?:\.processor)?\.to_out_lora\.", ".to_out.0.lora.", name)
    return name if name.startswith("unet.") else f"unet.{name}"


def _as_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """Peft's adapter_config.json in the form of the metadata."""
    names = ("r", "lora_alpha", "target_modules", "use_rslora", "alpha_pattern")
    return {LORA_METADATA: json.dumps({f"unet.{name}": config[name] for name in names if name in config})}


def _from_shapes(updates: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, str]:
    """The metadata of a file without one, from the shapes of its weights and the alphas next to them."""
    ranks = {name: len(value) for name, value in updates.items() if name.endswith(".lora.down.weight")}
    if not ranks:
        raise ValueError(f"without LoRA weights; {_EXPECTED}")
    if len(several := sorted(set(ranks.values()))) > 1:
        raise ValueError(f"layers of ranks {', '.join(map(str, several))}; expected one rank for all layers")
    if not alphas:
        return {}
    rank = next(iter(ranks.values()))
    if len(set(alphas.values())) > 1 or len(alphas) != len(ranks):
        raise ValueError(f"alphas {sorted(set(alphas.values()))} for {len(ranks)} layers; expected one for all layers")
    return {LORA_METADATA: json.dumps({"unet.r": rank, "unet.lora_alpha": next(iter(alphas.values()))})}
