"""Changes to parts of Stable Diffusion: a wider first convolution, low-rank updates, a ControlNet, KL latents.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022), with diffusers' modules.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

_ADAPTER = "default"
SECOND_LORA = "semantic"
"""Name of the second adapter, a part of the names of its weights."""
LORA_METADATA = "lora_adapter_metadata"
# Configuration keys that a ControlNet shares with its UNet, because it is a copy of the UNet's encoder.
_COPIED = (
    "in_channels",
    "cross_attention_dim",
    "block_out_channels",
    "down_block_types",
    "mid_block_type",
    "norm_num_groups",
    "norm_eps",
    "act_fn",
    "downsample_padding",
    "mid_block_scale_factor",
    "resnet_time_scale_shift",
    "use_linear_projection",
    "flip_sin_to_cos",
    "freq_shift",
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim",
)
_COPIED_FOR_EACH_BLOCK = (
    "attention_head_dim",
    "layers_per_block",
    "only_cross_attention",
    "transformer_layers_per_block",
)


def widen_conv_in(unet: UNet2DConditionModel, init: Literal["zeros", "duplicate"]) -> None:
    """Adds input channels for a conditioning latent, in place; a UNet that already has them is not changed.

    Marigold (Ke et al., CVPR 2024): the input becomes [conditioning, noisy latent], in this order.

    Args:
        init: "zeros" ignores the conditioning, so that the output does not change; "duplicate" repeats the pretrained
            weights for both latents and halves them, as in Marigold.

    Raises:
        ValueError: another `init`, or a UNet whose input is neither one latent nor two.
    """
    channels, found = unet.config.out_channels, unet.config.in_channels
    if found == 2 * channels:
        return
    if found != channels:
        raise ValueError(f"in_channels is {found}; it must be out_channels={channels} or twice that")
    weight = unet.conv_in.weight
    if init == "zeros":
        wider = torch.cat([torch.zeros_like(weight), weight], dim=1)
    elif init == "duplicate":
        wider = torch.cat([weight, weight], dim=1) / 2
    else:
        raise ValueError(f"init is {init!r}; it must be 'zeros' or 'duplicate'")
    unet.conv_in.weight = nn.Parameter(wider.detach(), requires_grad=weight.requires_grad)
    unet.conv_in.in_channels = 2 * channels
    unet.register_to_config(in_channels=2 * channels)


def predict(unet: UNet2DConditionModel, conditioning: Tensor, noisy: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
    """The output of a widened UNet.

    Args:
        conditioning, noisy: (B, C, h, w) latents.
        t: (B,) or scalar timesteps.
        prompt: (B, tokens, dim), or (1, tokens, dim) for all images.
    """
    attended = prompt.expand(len(noisy), -1, -1)
    return unet(torch.cat([conditioning, noisy], dim=1), t, encoder_hidden_states=attended, return_dict=False)[0]


def add_lora(
    unet: UNet2DConditionModel,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    dropout: float = 0.0,
    second: bool = False,
) -> None:
    """Adds trainable low-rank updates to layers and freezes the base, in place; the output does not change at first.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022), through peft.

    Args:
        rank: of the updates, 1 or more.
        alpha: updates are scaled by alpha / rank.
        targets: suffixes of the names of linear and convolutional layers, such as `to_q` or `to_out.0`.
        dropout: on the input of the updates, in training.
        second: add them to those of an earlier call, as a second adapter.

    Raises:
        ValueError: a rank below 1, or a target that is no layer's suffix.
    """
    from peft import LoraConfig  # takes two seconds, so only this function imports it

    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be 1 or more")
    layers = [
        layer.removesuffix(".base_layer")  # below the updates of another adapter
        for layer, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in layer
    ]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise ValueError(f"no layer's name ends in {target!r}; they end in {', '.join(_kinds(layers))}")
    unet.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # peft only divides it
        target_modules=list(targets),
        lora_dropout=dropout,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant
        unet.add_adapter(config, adapter_name=SECOND_LORA if second else _ADAPTER)  # and makes it the only active one
    unet.set_adapter(list(unet.peft_config))


def use_second_lora(unet: UNet2DConditionModel, used: bool) -> None:
    """Adds the updates of the second adapter to those of the first, or leaves them out, from now on.

    It stays so until the next call, because gradient checkpointing runs layers again in the backward pass.
    """
    wanted = [_ADAPTER, SECOND_LORA] if used else [_ADAPTER]
    if unet.active_adapters() == wanted:  # as in nearly every step; switching takes tens of milliseconds
        return
    required = {parameter: parameter.requires_grad for parameter in unet.parameters()}
    unet.set_adapter(wanted)
    for parameter, before in required.items():  # peft freezes an adapter that it leaves out
        parameter.requires_grad_(before)


def _kinds(layers: Sequence[str]) -> list[str]:
    """The shortest suffixes of names that are not only numbers: `to_q`, `to_out.0`."""
    return sorted({found[0] for name in layers if (found := re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", name))})


def lora_state_dict(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The updates, with the names of diffusers' `pytorch_lora_weights.safetensors`: `unet.<layer>.lora.down.weight`."""
    return {name: parameter.detach() for name, parameter in _lora_parameters(unet).items()}


def lora_metadata(unet: UNet2DConditionModel) -> dict[str, str]:
    """The metadata of that file: without it, readers assume alpha = rank."""
    _require_lora(unet)
    config = unet.peft_config[_ADAPTER]
    adapter = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
    return {LORA_METADATA: json.dumps({f"unet.{name}": value for name, value in adapter.items()})}


def lora_differences(
    unet: UNet2DConditionModel, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, tuple[Any, Any]]:
    """Differences between a file's updates and those of a UNet after `add_lora`, from the file's metadata.

    Returns:
        `rank`, `scale` (alpha / rank) or `targets` -> (in the file, in the UNet). Targets differ only if they are other
        layers.

    Args:
        state: the file's weights, in either naming.
        metadata: the file's, from `lora_metadata` or diffusers; without it, there are no differences.

    Raises:
        ValueError: no updates in the UNet, or metadata that is invalid or has several scales.
    """
    _require_lora(unet)
    own = unet.peft_config[_ADAPTER]
    own_scale, own_targets = own.lora_alpha / own.r, sorted(own.target_modules)
    try:
        written = json.loads(metadata.get(LORA_METADATA, "{}"))
        rank = written.get("unet.r", own.r)
        alpha = written.get("unet.lora_alpha", rank * own_scale)
        scale = alpha / (math.sqrt(rank) if written.get("unet.use_rslora") else rank)
        targets = written.get("unet.target_modules")
        targets = sorted(map(str, targets)) if isinstance(targets, list) else None  # or a pattern
    except (ValueError, AttributeError, TypeError, ArithmeticError):
        found = metadata[LORA_METADATA]
        raise ValueError(f"{LORA_METADATA} is {found!r:.100}; it must be the JSON of an adapter's settings") from None
    if several := written.get("unet.alpha_pattern"):
        raise ValueError(f"alpha_pattern is {several!r:.100}; there must be one lora_alpha for all layers")
    differences: dict[str, tuple[Any, Any]] = {}
    if rank != own.r:
        differences["rank"] = rank, own.r
    if not math.isclose(scale, own_scale, rel_tol=1e-6):
        differences["scale"] = scale, own_scale
    other_layers = {_public_name(name) for name in state} != _lora_parameters(unet).keys()
    if other_layers and targets and targets != own_targets:
        differences["targets"] = targets, own_targets
    return differences


def load_lora_state_dict(unet: UNet2DConditionModel, state: Mapping[str, Tensor]) -> None:
    """Loads updates of `lora_state_dict`, or in peft's naming (`lora_A`, `lora_B`), into a UNet after `add_lora`.

    Raises:
        ValueError: a UNet without updates, or weights missing, unexpected, not finite or of other shapes.
    """
    parameters = _lora_parameters(unet)
    given = {_public_name(name): values for name, values in state.items()}
    if unequal := sorted(given.keys() ^ parameters.keys()):
        raise ValueError(f"{len(unequal)} LoRA weights are missing or unexpected, such as {unequal[0]}")
    for name, parameter in parameters.items():
        if given[name].shape != parameter.shape:
            found, expected = tuple(given[name].shape), tuple(parameter.shape)
            raise ValueError(f"{name} is {found}; it must be {expected}: another rank or base")
        if not given[name].isfinite().all():
            raise ValueError(f"{name} has values that are infinite or NaN")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(given[name])


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Adds the updates to the weights they update, in place. The result is a plain UNet with the base's names."""
    _require_lora(unet)
    unet.fuse_lora()
    unet.unload_lora()


def _require_lora(unet: UNet2DConditionModel) -> None:
    if _ADAPTER not in getattr(unet, "peft_config", {}):
        raise ValueError("the UNet has no LoRA; call add_lora first")


def _lora_parameters(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    _require_lora(unet)
    return {
        f"unet.{_public_name(name.replace(f'.{_ADAPTER}.', '.'))}": parameter
        for name, parameter in unet.named_parameters()
        if ".lora_" in name
    }


def _public_name(name: str) -> str:
    return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def controlnet_from_unet(
    unet: UNet2DConditionModel, conditioning_channels: int, embedding_channels: Sequence[int], factor: int = 8
) -> ControlNetModel:
    """A copy of the UNet's encoder followed by zero convolutions: at first it adds nothing.

    Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models" (ICCV 2023).

    Args:
        unet: before `add_lora`.
        conditioning_channels: of the conditioning image.
        embedding_channels: widths of the convolutions that reduce it to latent size; each step halves it.
        factor: image pixels per latent pixel, along one side.

    Raises:
        ValueError: `embedding_channels` do not reduce images to the size of latents.
    """
    _require_halvings(embedding_channels, factor)
    return ControlNetModel.from_unet(
        unet,
        conditioning_embedding_out_channels=tuple(embedding_channels),
        conditioning_channels=conditioning_channels,
    )


def controlnet_on_latents(unet: UNet2DConditionModel, channels: int) -> ControlNetModel:
    """As `controlnet_from_unet`, on a conditioning latent of `channels` channels in place of an image.

    A convolution that starts at zero adds the latent to the output of the first convolution. That equals one
    convolution on both latents, concatenated, whose weights for the conditioning start at zero, as in CCSR's first
    stage (`ControlNet` of its `model/ccsr_stage1.py`).
    """
    controlnet = ControlNetModel.from_unet(unet)
    first = unet.conv_in
    added = nn.Conv2d(channels, first.out_channels, first.kernel_size, padding=first.padding, bias=False)
    nn.init.zeros_(added.weight)
    controlnet.controlnet_cond_embedding = added
    return controlnet


def check_controlnet(controlnet: ControlNetModel, unet: UNet2DConditionModel, factor: int = 8) -> None:
    """Checks that a loaded ControlNet fits the UNet, and latents `factor` times smaller than images.

    Raises:
        ValueError: naming the difference.
    """
    config = controlnet.config
    if config.conditioning_channels != 3:
        raise ValueError(f"the ControlNet's conditioning_channels is {config.conditioning_channels}; it must be 3")
    order = config.controlnet_conditioning_channel_order
    if order not in ("rgb", "bgr"):
        raise ValueError(
            f"the ControlNet's controlnet_conditioning_channel_order is {order!r}; it must be 'rgb' or 'bgr'"
        )
    blocks = len(unet.config.block_out_channels)
    for name in _COPIED + _COPIED_FOR_EACH_BLOCK:
        found, expected = config[name], unet.config[name]
        if name == "attention_head_dim":  # the number of heads, in spite of diffusers' name
            found = config.num_attention_heads or found
        repeated = blocks if name in _COPIED_FOR_EACH_BLOCK else 0
        if _as_lists(found, repeated) != _as_lists(expected, repeated):
            raise ValueError(
                f"the ControlNet's {name} is {json.dumps(found)}; it must be the UNet's {json.dumps(expected)}"
            )
    _require_halvings(config.conditioning_embedding_out_channels, factor)


def _as_lists(value: Any, blocks: int) -> Any:
    """A configuration's value with tuples as lists, as in JSON; a single value is repeated for all blocks."""
    if isinstance(value, list | tuple):
        return list(value)
    return [value] * blocks if blocks else value


def _require_halvings(embedding_channels: Sequence[int], factor: int) -> None:
    if 2 ** (len(embedding_channels) - 1) != factor:
        count, widths = factor.bit_length(), tuple(embedding_channels)
        raise ValueError(f"embedding_channels is {widths}; {count} widths halve images to latents 1/{factor} the size")


def encode_kl(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents, `(B, 3, H, W)` in [-1, 1] `-> (B, latent_channels, H/f, W/f)`: the posterior's mean times
    `scaling_factor`.

    float32 also under autocast, so that prepared latents equal latents computed during training.

    Raises:
        ValueError: H or W is not a multiple of f.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if images.ndim != 4 or images.shape[2] % factor or images.shape[3] % factor:
        raise ValueError(f"images are {tuple(images.shape)}; they must be (B, 3, H, W), sides multiples of {factor}")
    with torch.autocast(images.device.type, enabled=False):
        return vae.encode(images.float()).latent_dist.mean * vae.config.scaling_factor


def decode_kl(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images, `(B, latent_channels, h, w) -> (B, 3, fh, fw)`, in about [-1, 1], not clamped.

    float32 also under autocast. Gradients reach `latents`.
    """
    with torch.autocast(latents.device.type, enabled=False):
        return vae.decode(latents.float() / vae.config.scaling_factor, return_dict=False)[0]
