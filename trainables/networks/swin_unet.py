"""The Swin-transformer U-Net of ResShift and SinSR, which denoises latents.

Architecture of `UNetModelSwin` (Yue et al., ResShift, NeurIPS 2023; `models/unet.py` of its code): a residual
convolutional U-Net with Swin's self-attention in windows, so that large inputs stay affordable. Parameters have the
official names, so official checkpoints can be loaded: `SwinUNet.load_official_state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainables.networks.checkpoint_files import load_strictly, weights_in
from trainables.networks.swin import NORM_GROUPS, GroupNorm32, SwinLayer


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of timesteps, `(B,) -> (B, dim)` float32: cosines, then sines."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t[:, None].float() * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class ResBlock(nn.Module):
    """Two convolutions with the timestep's modulation in between; initially only the skip connection."""

    def __init__(
        self, channels: int, emb_channels: int, out_channels: int, dropout: float, use_scale_shift_norm: bool
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        emb_width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_width))
        last_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        for parameter in last_conv.parameters():
            nn.init.zeros_(parameter)
        self.out_layers = nn.Sequential(GroupNorm32(out_channels), nn.SiLU(), nn.Dropout(dropout), last_conv)
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """`x: (B, C, H, W)`, `emb: (B, E)` -> `(B, out_channels, H, W)`."""
        h = self.in_layers(x)
        modulation = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), 1 + scale)
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + modulation)
        return self.skip_connection(x) + h


class Downsample(nn.Module):
    """Halves the size, by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the size, by repeating pixels and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class _Stage(nn.Sequential):
    """Layers in sequence; the residual blocks also get the timestep's embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class SwinUNet(nn.Module):
    """Predicts `x0` from a scaled noisy latent, its timestep and the degraded image.

    Args:
        image_size: side of the latents for which the network is laid out; determines the levels with attention and the
            size of their windows. Other sizes that are multiples of `size_multiple` work too.
        in_channels: channels of `x` and of the conditioning together.
        model_channels: base width, a multiple of 32.
        out_channels: channels of the prediction.
        num_res_blocks: residual blocks per level, one number or one for each level.
        attention_resolutions: sizes (at `image_size`) whose levels get Swin layers, besides the bottleneck.
        channel_mult: width of each level relative to `model_channels`.
        num_head_channels: width of an attention head.
        swin_depth: blocks of a Swin layer.
        swin_embed_dim: width of the Swin layers, a multiple of 32 and of `num_head_channels`.
        window_size: side of the attention windows.
        mlp_ratio: hidden width of the feed-forward part relative to `swin_embed_dim`.
        dropout: probability, in residual and Swin blocks.
        use_scale_shift_norm: the timestep scales and shifts after normalisation, instead of being added.
        patch_norm: normalise after the projections around the Swin blocks.
        gradient_checkpointing: recompute every stage in the backward pass, to save memory.

    The defaults are the released 4x super-resolution networks of ResShift and SinSR.

    Raises:
        ValueError: a configuration that cannot be built; the message names the field.
    """

    def __init__(
        self,
        *,
        image_size: int = 64,
        in_channels: int = 6,
        model_channels: int = 160,
        out_channels: int = 3,
        num_res_blocks: int | Sequence[int] = 2,
        attention_resolutions: Collection[int] = (64, 32, 16, 8),
        channel_mult: Sequence[float] = (1, 2, 2, 4),
        num_head_channels: int = 32,
        swin_depth: int = 2,
        swin_embed_dim: int = 192,
        window_size: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = True,
        patch_norm: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        blocks = [num_res_blocks] * levels if isinstance(num_res_blocks, int) else list(num_res_blocks)
        widths = [int(mult * model_channels) for mult in channel_mult]
        resolutions = [image_size // 2**level for level in range(levels)]
        _check_layout(image_size, levels, blocks, widths, swin_embed_dim, num_head_channels)
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.gradient_checkpointing = gradient_checkpointing
        emb = 4 * model_channels

        def res(channels: int, out: int) -> ResBlock:
            return ResBlock(channels, emb, out, dropout, use_scale_shift_norm)

        def swin(channels: int, resolution: int) -> SwinLayer:
            heads = swin_embed_dim // num_head_channels
            shape = (swin_depth, resolution, window_size, mlp_ratio)
            return SwinLayer(channels, swin_embed_dim, heads, *shape, dropout, patch_norm)

        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))

        width = widths[0]
        self.input_blocks = nn.ModuleList([_Stage(nn.Conv2d(in_channels, width, 3, padding=1))])
        skips = [width]
        for level, resolution in enumerate(resolutions):
            for i in range(blocks[level]):
                layers: list[nn.Module] = [res(width, widths[level])]
                width = widths[level]
                if i == 0 and resolution in attention_resolutions:
                    layers.append(swin(width, resolution))
                self.input_blocks.append(_Stage(*layers))
                skips.append(width)
            if level < levels - 1:
                self.input_blocks.append(_Stage(Downsample(width)))
                skips.append(width)

        self.middle_block = _Stage(res(width, width), swin(width, resolutions[-1]), res(width, width))

        self.output_blocks = nn.ModuleList()
        for level, resolution in reversed(list(enumerate(resolutions))):
            for i in range(blocks[level] + 1):
                layers = [res(width + skips.pop(), widths[level])]
                width = widths[level]
                if i == 0 and resolution in attention_resolutions:
                    layers.append(swin(width, resolution))
                if level > 0 and i == blocks[level]:
                    layers.append(Upsample(width))
                self.output_blocks.append(_Stage(*layers))

        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

        # Each level halves the size. At levels with attention, the windows must tile the feature map.
        tiled = {r: min(r, window_size) for r in resolutions if r in attention_resolutions or r == resolutions[-1]}
        self.size_multiple = math.lcm(*(image_size // r * window for r, window in tiled.items()))
        if image_size % self.size_multiple:
            raise ValueError(
                f"window_size is {window_size}; windows must tile image_size, {image_size}, at every level "
                f"with attention: {sorted(tiled, reverse=True)}"
            )

    def forward(self, x: Tensor, t: Tensor, lq: Tensor | None = None) -> Tensor:
        """Predicts `x0`, `(B, out_channels, H, W)`.

        Args:
            x: scaled noisy latents, `(B, C, H, W)`; H and W are multiples of `size_multiple`.
            t: timesteps, `(B,)`, 0-based.
            lq: the degraded image, concatenated to `x` along channels: of the latents' size, or of twice that (its 2x2
                patches become channels), or of a quarter (repeated).

        Raises:
            ValueError: unsupported sizes or channels.
        """
        if lq is not None:
            x = torch.cat([x, _match_size(lq, x)], dim=1)
        self._check_input(x)
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(next(self.parameters()).dtype))
        if x.device.type == "cpu":
            # oneDNN's convolutions are faster in this layout, and windows of tokens are views of the feature map.
            x = x.contiguous(memory_format=torch.channels_last)

        skips = []
        h = x
        for stage in self.input_blocks:
            h = self._run(stage, h, emb)
            skips.append(h)
        h = self._run(self.middle_block, h, emb)
        for stage in self.output_blocks:
            h = self._run(stage, torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h).contiguous()

    def _run(self, stage: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, use_reentrant=False)
        return stage(h, emb)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x joined with lq is {tuple(x.shape)}; it must be (B, {self.in_channels}, H, W)")
        if x.shape[2] % self.size_multiple or x.shape[3] % self.size_multiple:
            raise ValueError(
                f"x is {x.shape[2]}x{x.shape[3]}; both sides must be multiples of {self.size_multiple}, so "
                "that every level can be halved and tiled by attention windows"
            )

    def load_official_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads weights of the official `UNetModelSwin`, strictly.

        Accepts its checkpoints, wrapped as `weights_in` says. The buffers `relative_position_index` and `attn_mask`
        follow from the configuration and are ignored. If this network's windows are smaller, as for a smaller
        `image_size`, their position biases are the inner part of the official tables: a bias belongs to an offset
        between two pixels, and smaller windows have only small offsets.

        Raises:
            RuntimeError: parameters missing, unexpected or of other shapes; the message names them.
        """
        derived = (".relative_position_index", ".attn_mask")
        own = self.state_dict()
        starts = tuple({f"{name.partition('.')[0]}." for name in own})
        weights = {n: value for n, value in weights_in(state, own=starts).items() if not n.endswith(derived)}
        for name in (name for name in weights if name.endswith(".relative_position_bias_table") and name in own):
            weights[name] = _inner_offsets(weights[name], len(own[name]))
        load_strictly(self, weights)


def _inner_offsets(table: Tensor, offsets: int) -> Tensor:
    """The part of a bias table ((2w - 1)^2, heads) for a window with `offsets` <= (2w - 1)^2 of them."""
    wide, narrow = math.isqrt(len(table)), math.isqrt(offsets)
    if narrow > wide:
        return table  # the load refuses its shape
    edge = (wide - narrow) // 2
    inner = slice(edge, edge + narrow)
    return table.view(wide, wide, -1)[inner, inner].reshape(offsets, -1)


def _check_layout(
    image_size: int, levels: int, blocks: Sequence[int], widths: Sequence[int], embed_dim: int, head: int
) -> None:
    if levels == 0:
        raise ValueError("channel_mult is empty; it must have at least one level")
    if image_size % 2 ** (levels - 1):
        raise ValueError(f"image_size is {image_size}; it must be a multiple of 2^{levels - 1} for {levels} levels")
    if len(blocks) != levels:
        raise ValueError(f"num_res_blocks is {list(blocks)}; it must be one number or {levels}, one per level")
    for width in (*widths, embed_dim):
        if width <= 0 or width % NORM_GROUPS:
            raise ValueError(
                f"model_channels x channel_mult is {list(widths)} and swin_embed_dim {embed_dim}; all must "
                f"be positive multiples of {NORM_GROUPS}, the groups of the normalisation"
            )
    if head <= 0 or embed_dim % head:
        raise ValueError(f"num_head_channels is {head}; it must divide swin_embed_dim, {embed_dim}")


def _match_size(lq: Tensor, x: Tensor) -> Tensor:
    """Brings the conditioning to the latents' size, as the official network does."""
    height, width = x.shape[2:]
    match (lq.shape[2] / height, lq.shape[3] / width):
        case (1.0, 1.0):
            return lq
        case (2.0, 2.0):
            return F.pixel_unshuffle(lq, 2)
        case (0.25, 0.25):
            return F.interpolate(lq, scale_factor=4)
    raise ValueError(
        f"lq is {lq.shape[2]}x{lq.shape[3]}; for latents of {height}x{width} it must be of the same size, of "
        "twice or of a quarter of it"
    )
