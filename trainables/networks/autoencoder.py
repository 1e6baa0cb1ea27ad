"""The VQ-f4 autoencoder of ResShift and SinSR, as a diffusers `VQModel`.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022): images in [-1, 1] become
latents a quarter their size. The diffusion works on latents before quantisation. Only when they are decoded to images
are they quantised, that is replaced by their nearest codebook vectors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL, VQModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainables.networks.checkpoint_files import load_strictly, read_weights

LDM_NAMES = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
"""Starts of the names of an autoencoder in latent-diffusion's layout."""
_DISTANCES_AT_ONCE = 2**24  # (latent, code) pairs per search of the nearest codes: 64 MiB of float32


def build_vq_f4(
    channels: int = 128,
    channel_mult: Sequence[int] = (1, 2, 4),
    layers_per_block: int = 2,
    codebook_size: int = 8192,
    latent_channels: int = 3,
    norm_groups: int = 32,
) -> VQModel:
    """A randomly initialised VQ autoencoder; the defaults are those of the official VQ-f4.

    Args:
        channels: width at full resolution.
        channel_mult: width of each level relative to `channels`; every level but the last halves the size.
        layers_per_block: residual blocks per level in the encoder; the decoder has one more.
        codebook_size: number of codes.
        latent_channels: channels of a latent, and of a code.
        norm_groups: groups of the normalisation; must divide every level's width.

    Raises:
        ValueError: a width that `norm_groups` does not divide.
    """
    widths = tuple(channels * mult for mult in channel_mult)
    for width in widths:
        if width % norm_groups:
            raise ValueError(f"channels x channel_mult gives {width}; it must be a multiple of {norm_groups}")
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        vq_embed_dim=latent_channels,
        num_vq_embeddings=codebook_size,
        norm_num_groups=norm_groups,
        scaling_factor=1.0,
    )


def downsampling(model: VQModel | AutoencoderKL) -> int:
    """Image side / latent side, 4 for VQ-f4."""
    return 2 ** (len(model.config.block_out_channels) - 1)


def encode(model: VQModel, images: Tensor) -> Tensor:
    """Latents before quantisation, `(B, 3, H, W)` in [-1, 1] `-> (B, latent_channels, H/4, W/4)`.

    float32 also under autocast, so that prepared latents equal latents computed during training.

    Raises:
        ValueError: H or W is not a multiple of 4.
    """
    factor = downsampling(model)
    if images.ndim != 4 or images.shape[2] % factor or images.shape[3] % factor:
        raise ValueError(f"images are {tuple(images.shape)}; they must be (B, 3, H, W), sides multiples of {factor}")
    with torch.autocast(images.device.type, enabled=False):
        return model.encode(images.float(), return_dict=False)[0]


def quantise(model: VQModel, latents: Tensor) -> Tensor:
    """The nearest code of every latent pixel, `(B, C, h, w)` -> the same shape; no gradient reaches `latents`."""
    codebook = model.quantize.embedding.weight
    # Half precision would confuse neighbouring codes.
    with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
        codes = codebook.float()
        pixels = latents.detach().movedim(1, -1).reshape(-1, latents.shape[1]).float()
        # |z - e|^2 without |z|^2, which does not depend on the code.
        norms, transposed = codes.square().sum(dim=1), codes.t()
        chunks = pixels.split(max(1, _DISTANCES_AT_ONCE // len(codes)))
        nearest = torch.cat([torch.addmm(norms, chunk, transposed, alpha=-2).argmin(dim=1) for chunk in chunks])
    batch, _, height, width = latents.shape
    return codebook[nearest].view(batch, height, width, -1).movedim(-1, 1).to(latents.dtype)


def decode(model: VQModel, latents: Tensor, straight_through: bool = False) -> Tensor:
    """Quantise and decode, `(B, C, h, w) -> (B, 3, 4h, 4w)`, in about [-1, 1], not clamped.

    float32 also under autocast, so that trials of any precision are measured with the same decoder.

    Args:
        straight_through: pass gradients through the quantisation as if it were the identity, for losses on images.
            Otherwise no gradient reaches `latents`.
    """
    latents = latents.float()
    quantised = quantise(model, latents)
    if straight_through:
        quantised = latents + (quantised - latents).detach()
    with torch.autocast(latents.device.type, enabled=False):
        return model.decode(quantised, force_not_quantize=True, return_dict=False)[0]


def save_vq_f4(model: VQModel, path: str | Path) -> None:
    """Writes weights and configuration to one safetensors file, for `load_vq_f4`."""
    config = {k: v for k, v in model.config.items() if not k.startswith("_")}
    weights = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt", "vq_config": json.dumps(config)})


def load_vq_f4(path: str | Path) -> VQModel:
    """Loads an autoencoder, in evaluation mode on the CPU.

    Args:
        path: a file of `save_vq_f4` (`.safetensors`); a diffusers folder (`config.json` and safetensors weights); or
            the `autoencoder_vq_f4.pth` of ResShift and SinSR (`.pth`, `.pt` or `.ckpt`), of any width.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: another kind of file.
        RuntimeError: weights missing, unexpected or of other shapes; the message names them.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no autoencoder at {path}")
    if path.is_dir():
        model, report = VQModel.from_pretrained(
            str(path), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        for what in ("missing", "unexpected", "mismatched"):
            if names := sorted(map(str, report[f"{what}_keys"])):  # diffusers would only warn
                raise RuntimeError(f"{len(names)} weights {what}: {', '.join(names)}")
        return model.eval()
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get("vq_config")
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not a mapping
        if config is None:
            raise ValueError(f"{path} has no vq_config in its metadata; it must be a file written by save_vq_f4")
        model = VQModel.from_config(json.loads(config))
    elif path.suffix in {".pth", ".pt", ".ckpt"}:
        state = read_weights(path, without=("loss.",), own=LDM_NAMES)  # the loss is of its adversarial training
        model = _build_for_ldm(state)
        weights = convert_ldm_state_dict(state)
    else:
        raise ValueError(f"{path} is not an autoencoder; give .safetensors, .pth, .pt, .ckpt or a diffusers folder")
    load_strictly(model, weights)
    return model.eval()


_LDM_RENAMES = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def convert_ldm_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames weights of the official `VQModelTorch` (latent-diffusion layout) to diffusers' `VQModel`, and those of
    its `AutoencoderKL` to diffusers' `AutoencoderKL`.

    Keys of another layout stay unchanged, so that a strict load names them.
    """
    levels = _ldm_levels(state)
    converted = {}
    for key, value in state.items():
        for pattern, replacement in _LDM_RENAMES:
            key = re.sub(pattern, replacement, key)
        # The official decoder numbers its levels from full resolution, diffusers' from the latents.
        if up := re.fullmatch(r"decoder\.up\.(\d+)\.(block|upsample)\.(.+)", key):
            block = "resnets." if up[2] == "block" else "upsamplers.0."
            key = f"decoder.up_blocks.{levels - 1 - int(up[1])}.{block}{up[3]}"
        if re.search(r"\.attentions\.0\.to_\w+(\.0)?\.weight$", key):
            value = value.flatten(1)  # 1x1 convolutions in the file, linear layers here
        converted[key] = value
    return converted


def _ldm_levels(state: Mapping[str, Tensor]) -> int:
    levels = [int(found[1]) for key in state if (found := re.match(r"encoder\.down\.(\d+)\.", key))]
    if not levels:
        raise ValueError(f"no encoder.down.* among the {len(state)} weights; these are not of a VQModelTorch")
    return max(levels) + 1


def ldm_architecture(state: Mapping[str, Tensor]) -> tuple[list[int], int]:
    """The widths of the levels, from full resolution, and the residual blocks per level, of latent-diffusion
    weights.
    """
    widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(_ldm_levels(state))]
    layers = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", key)) for key in state)
    return widths, layers


def _build_for_ldm(state: Mapping[str, Tensor]) -> VQModel:
    """An autoencoder with the size of the official weights."""
    widths, layers = ldm_architecture(state)
    codebook_size, latent_channels = state["quantize.embedding.weight"].shape
    mult = [width // widths[0] for width in widths]
    return build_vq_f4(widths[0], mult, layers, codebook_size, latent_channels)
