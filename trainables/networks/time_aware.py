"""StableSR's conditioning: a time-aware encoder of the degraded latent, and transforms of a UNet's features.

Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution" (IJCV 2024; `EncoderUNetModelWT` and
`ResBlockDual` in `ldm/modules/diffusionmodules/openaimodel.py` of its code). The encoder also sees the timestep, so its
guidance can be strong where the noise hides the image, and weak where it would only repeat it. Its features scale and
shift those of the UNet's residual blocks (spatial feature transform, Wang et al., CVPR 2018). The UNet is not trained.

The UNet is a diffusers `UNet2DConditionModel`. Levels are numbered from full resolution, 0.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AttnDownBlock2D, DownBlock2D, UNetMidBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainables.networks.checkpoint_files import read_weights

HEADS = 4
"""Attention heads of the encoder, at every width."""
_UNET, _ENCODER = "model.diffusion_model.", "structcond_stage_model."


def check_width(width: int, norm_groups: int) -> None:
    """Checks the encoder's width against the groups of the UNet's normalisations, which it takes over.

    Raises:
        ValueError: naming what would fit.
    """
    if width % HEADS or width % norm_groups:
        raise ValueError(
            f"expected a multiple of {HEADS} heads and of the {norm_groups} norm groups of the base's UNet"
        )


class TimeAwareEncoder(ModelMixin):
    """The first half of a UNet: features of the degraded latent at every level, for a timestep.

    Self-attention is in all levels but the lowest, and in the middle. As in the official code, the last convolution of
    each residual block and attention starts at zero.

    Args:
        in_channels: of the latent.
        width: channels of the features and of the upper half of the levels; the lower half has twice as many.
        levels: every one but the last halves the latent.
        layers: residual blocks per level.
        norm_groups: groups of the normalisation.

    Raises:
        ValueError: `check_width` refuses the width.
    """

    _supports_gradient_checkpointing = True

    def __init__(self, in_channels: int, width: int, levels: int, layers: int, norm_groups: int) -> None:
        super().__init__()
        check_width(width, norm_groups)
        channels = [width if 2 * level < levels else 2 * width for level in range(levels)]
        last = channels[-1]
        shared: dict[str, Any] = {"temb_channels": 4 * width, "resnet_eps": 1e-5, "resnet_groups": norm_groups}
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, 4 * width)
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        *upper, lowest = itertools.pairwise((width, *channels))
        self.down_blocks = nn.ModuleList(
            AttnDownBlock2D(*widths, num_layers=layers, attention_head_dim=widths[1] // HEADS, **shared)
            for widths in upper
        )
        self.down_blocks.append(DownBlock2D(*lowest, num_layers=layers, add_downsample=False, **shared))
        self.mid_block = UNetMidBlock2D(last, attention_head_dim=last // HEADS, **shared)
        self.to_features = nn.ModuleList(
            ResnetBlock2D(
                in_channels=leaving, out_channels=width, temb_channels=4 * width, eps=1e-5, groups=norm_groups
            )
            for leaving in channels
        )
        for name, module in self.named_modules():
            if name.endswith((".conv2", ".to_out.0")):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, t: Tensor) -> list[Tensor]:
        """Features of all levels, `(B, C, h, w)` and `(B,)` timesteps `-> (B, width, h / 2^level, w / 2^level)`."""
        embedded = self.time_embedding(self.time_proj(t).to(latents.dtype))
        h = self.conv_in(latents)
        levels = []
        for block in self.down_blocks:
            h, outputs = block(h, embedded)
            levels.append(outputs[-2] if block.downsamplers else h)
        levels[-1] = self.mid_block(h, embedded)
        return [transform(h, embedded) for transform, h in zip(self.to_features, levels, strict=True)]


class SpatialFeatureTransform(nn.Module):
    """Scales and shifts a residual block's features at every pixel, by an encoder's features.

    Args:
        channels: of the residual block.
        features: channels of the encoder's features.
        hidden: channels between the two convolutions.
        norm_groups: groups of a normalisation before, as in SPADE (Park et al., CVPR 2019) and in StableSR's code; 0
            for none, as in StableSR's paper. Without it, the transform starts as the identity.
    """

    def __init__(self, channels: int, features: int, hidden: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-5) if norm_groups else nn.Identity()
        self.shared = nn.Conv2d(features, hidden, 3, padding=1)
        self.scale = nn.Conv2d(hidden, channels, 3, padding=1)
        self.shift = nn.Conv2d(hidden, channels, 3, padding=1)
        if not norm_groups:
            for parameter in (*self.scale.parameters(), *self.shift.parameters()):
                nn.init.zeros_(parameter)

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        """`(B, channels, h, w)` and `(B, features, h, w)` -> `(B, channels, h, w)`."""
        hidden = F.relu(self.shared(features))
        transformed: Tensor = self.norm(h) * (1 + self.scale(hidden)) + self.shift(hidden)
        return transformed


class TimeAwareConditioning(nn.Module):
    """All that StableSR's first stage trains: the encoder, and a transform for each residual block of the UNet.

    Args:
        unet: the base's.
        width, layers: of the `TimeAwareEncoder`.
        hidden: of each `SpatialFeatureTransform`.
        normalised: whether the transforms normalise first.

    Raises:
        ValueError: `check_width` refuses the width.
    """

    def __init__(self, unet: UNet2DConditionModel, width: int, layers: int, hidden: int, *, normalised: bool) -> None:
        super().__init__()
        config, groups = unet.config, unet.config.norm_num_groups
        self.encoder = TimeAwareEncoder(config.out_channels, width, len(config.block_out_channels), layers, groups)
        self.transforms = nn.ModuleList(
            SpatialFeatureTransform(block.conv2.out_channels, width, hidden, groups if normalised else 0)
            for _, block in residual_blocks(unet)
        )

    def forward(self, latents: Tensor, t: Tensor) -> list[Tensor]:
        """The encoder's features of the degraded latents, see `TimeAwareEncoder`."""
        found: list[Tensor] = self.encoder(latents, t)
        return found


def residual_blocks(unet: UNet2DConditionModel) -> Iterator[tuple[int, ResnetBlock2D]]:
    """Every residual block of a UNet with its level, in the order of its forward pass."""
    last = len(unet.down_blocks) - 1
    for level, block in enumerate(unet.down_blocks):
        yield from ((level, resnet) for resnet in block.resnets)
    yield from ((last, resnet) for resnet in unet.mid_block.resnets)
    for k, block in enumerate(unet.up_blocks):
        yield from ((last - k, resnet) for resnet in block.resnets)


class ModulatedUNet:
    """A UNet whose residual blocks are transformed by an encoder's features, before each block adds its input.

    Forward hooks do this, so that the UNet's weights keep their names, and the UNet alone works as before.

    Args:
        unet: the base's. If it recomputes activations to save memory, it then does so with the features of the pass.
        transforms: one for each of its `residual_blocks`.
    """

    def __init__(self, unet: UNet2DConditionModel, transforms: nn.ModuleList) -> None:
        self.unet = unet
        self._features: Sequence[Tensor] | None = None
        for (level, block), transform in zip(residual_blocks(unet), transforms, strict=True):
            block.conv2.register_forward_hook(partial(self._transform, level, transform))
        if unet.is_gradient_checkpointing:
            unet.enable_gradient_checkpointing(self._recomputed)

    def __call__(self, x_t: Tensor, t: Tensor, prompt: Tensor, features: Sequence[Tensor]) -> Tensor:
        """The UNet's output.

        Args:
            x_t: (B, C, h, w) noisy latents.
            t: (B,) timesteps.
            prompt: (B, tokens, dim), or (1, tokens, dim) for all images.
            features: of every level, from the encoder.
        """
        with self._given(features):
            output: Tensor = self.unet(x_t, t, prompt.expand(len(x_t), -1, -1), return_dict=False)[0]
        return output

    @contextmanager
    def _given(self, features: Sequence[Tensor] | None) -> Iterator[None]:
        before, self._features = self._features, features
        try:
            yield
        finally:
            self._features = before

    def _transform(self, level: int, transform: nn.Module, block: nn.Module, inputs: Any, h: Tensor) -> Tensor | None:
        """A forward hook: returns the output in place of `h`, or None to leave it."""
        return None if self._features is None else transform(h, self._features[level])

    def _recomputed(self, module: nn.Module, *inputs: Any) -> Any:
        """`module(*inputs)`, computed again in the backward pass, when the features may be those of a later pass."""
        features = self._features

        def run(*given: Any) -> Any:
            with self._given(features):
                return module(*given)

        return checkpoint(run, *inputs, use_reentrant=False)


def read_official_stablesr(path: Path) -> dict[str, Tensor]:
    """The UNet, the encoder and the transforms in a checkpoint of StableSR's first stage, such as
    `stablesr_000117.ckpt`, under their official names.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: a file without them.
    """
    state = {k: v for k, v in read_weights(path, own=(_UNET, _ENCODER)).items() if k.startswith((_UNET, _ENCODER))}
    if not any(".spade." in key for key in state) or not any(key.startswith(_ENCODER) for key in state):
        raise ValueError(f"no {_ENCODER}* and {_UNET}*.spade.* in it; these are not weights of StableSR's first stage")
    return state


def convert_official_stablesr(
    state: Mapping[str, Tensor], unet: UNet2DConditionModel
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Converts official weights to those of a `UNet2DConditionModel` and of its `TimeAwareConditioning`.

    Keys of another layout stay unchanged, so that a strict load names them.

    Args:
        state: from `read_official_stablesr`.
        unet: its configuration says how the UNet's blocks are numbered.
    """
    base = {key: value for key, value in state.items() if key.startswith(_UNET) and ".spade." not in key}
    own = {key.removeprefix(_ENCODER): value for key, value in state.items() if key.startswith(_ENCODER)}
    transforms = {key.removeprefix(_UNET): value for key, value in state.items() if ".spade." in key}
    conditioning = {f"encoder.{name}": value for name, value in _convert_encoder(own).items()}
    places = sorted({key.partition(".spade.")[0] for key in transforms}, key=_place)
    for key, value in transforms.items():
        place, _, name = key.partition(".spade.")
        for theirs, ours in _TRANSFORM.items():
            name = name.replace(theirs, ours)
        conditioning[f"transforms.{places.index(place)}.{name}"] = value
    return convert_ldm_unet_checkpoint(base, unet.config), conditioning


_TRANSFORM = {"param_free_norm.": "norm.", "mlp_shared.0.": "shared.", "mlp_gamma.": "scale.", "mlp_beta.": "shift."}
_RESIDUAL = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
_ATTENTION = {"norm.": "group_norm.", "proj_out.": "to_out.0."}


def _place(prefix: str) -> tuple[int, int, int]:
    """The place of a residual block, such as `input_blocks.1.0` or `middle_block.2`, in the forward pass."""
    section, first, *more = prefix.split(".")
    return ("input_blocks", "middle_block", "output_blocks").index(section), int(first), int(more[0]) if more else 0


def _convert_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    places = {"input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1"}
    places |= {"time_embed.2": "time_embedding.linear_2", "middle_block.1": "mid_block.attentions.0"}
    places |= {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    level = layer = 0
    for k in range(1, 1 + max((int(key.split(".")[1]) for key in state if key.startswith("input_blocks.")), default=0)):
        if f"input_blocks.{k}.0.op.weight" in state:
            places[f"input_blocks.{k}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, layer = level + 1, 0
        else:
            places[f"input_blocks.{k}.0"] = f"down_blocks.{level}.resnets.{layer}"
            places[f"input_blocks.{k}.1"] = f"down_blocks.{level}.attentions.{layer}"
            layer += 1
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"^fea_tran\.", "to_features.", key)
        found = next((place for place in places if key.startswith(f"{place}.")), None)
        if found:
            name = f"{places[found]}{key.removeprefix(found)}"
        if ".attentions." in name:
            converted |= _convert_attention(name, value)
        else:
            for theirs, ours in _RESIDUAL.items():
                name = name.replace(f".{theirs}", f".{ours}")
            converted[name] = value
    return converted


def _convert_attention(name: str, value: Tensor) -> dict[str, Tensor]:
    """Queries, keys and values of each head follow each other in the file; its 1x1 convolutions are linear layers
    here.
    """
    value = value.flatten(1) if value.ndim > 2 else value
    if ".qkv." in name:
        parts = value.unflatten(0, (HEADS, 3, -1)).unbind(1)
        return {name.replace(".qkv.", f".to_{k}."): part.flatten(0, 1) for k, part in zip("qkv", parts, strict=True)}
    for theirs, ours in _ATTENTION.items():
        name = name.replace(f".{theirs}", f".{ours}")
    return {name: value}
