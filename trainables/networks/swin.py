"""Swin transformer layers on feature maps: self-attention in windows, shifted in every other block.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (ICCV 2021), as in ResShift's
`models/swin_transformer.py`: group norm instead of layer norm, 1x1 convolutions instead of linear layers.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32


class GroupNorm32(nn.GroupNorm):
    """Group norm in 32 groups, computed in float32 also for half-precision inputs; in float64 for float64 inputs."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.dtype == torch.float64 else x.float()).to(x.dtype)


@lru_cache(maxsize=64)
def _shift_mask(rows: int, columns: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Additive mask `(rows * columns, 1, tokens, tokens)` over the windows of a shifted block.

    Swin's mask separates tokens that the cyclic shift brought together from opposite borders. ResShift's code indexes
    its map of regions one axis off: it masks only the last row of windows, and there separates left from right. Its
    released weights were trained with that mask, so this code builds the same.

    Cached and shared by all blocks, because it depends on sizes alone.
    """
    # A tensor made in inference mode could not be used in a later training step.
    with torch.inference_mode(False):
        right = torch.arange(window * window, device=device) % window >= window - shift
        mask = torch.zeros(rows, columns, 1, window**2, window**2, device=device)
        mask[-1] = torch.where(right[:, None] == right, 0.0, -100.0)
        return mask.flatten(0, 1)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for every relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        span = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(span * span, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Offsets between query and key along one axis, counted from zero.
        offset = torch.arange(window)[:, None] - torch.arange(window) + window - 1
        index = offset[:, None, :, None] * span + offset[None, :, None, :]
        self.register_buffer("relative_position_index", index.reshape(-1), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x: (B, windows, tokens, C)`, `mask: (windows, 1, tokens, tokens)` additive or None -> the shape of `x`."""
        batch, windows, tokens, channels = x.shape
        qkv = self.qkv(x).view(batch, windows, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        bias = self.relative_position_bias_table.t()[:, self.relative_position_index]
        bias = bias.view(1, self.heads, tokens, tokens)
        if mask is not None:
            bias = bias + mask
        out = _biased_attention(q, k, v, bias.to(q.dtype)).transpose(2, 3)
        return self.proj_drop(self.proj(out.reshape(batch, windows, tokens, channels)))


def _biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`q, k, v: (B, windows, heads, tokens, D)`, `bias: (windows|1, heads, tokens, tokens)` -> the shape of `q`."""
    if q.device.type == "cpu" and bias.requires_grad:
        # The CPU's fused kernel has no gradient for a bias; PyTorch's fallback is slower than this.
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        return scores.add_(bias).softmax(dim=-1) @ v
    if len(bias) > 1:
        bias = bias.repeat(q.shape[0], 1, 1, 1)
    out = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=bias)
    return out.unflatten(0, q.shape[:2])


class Mlp(nn.Module):
    """The block's feed-forward part, as 1x1 convolutions."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwinBlock(nn.Module):
    """One Swin block on a feature map: attention in (shifted) windows, then the feed-forward part."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = GroupNorm32(dim)
        self.attn = WindowAttention(dim, window, heads, dropout)
        self.norm2 = GroupNorm32(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, C, H, W)`; H and W are multiples of the window."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        w, rows, columns = self.window, height // self.window, width // self.window
        tokens = x.permute(0, 2, 3, 1)
        mask = None
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = _shift_mask(rows, columns, w, self.shift, x.device)
        tokens = tokens.reshape(batch, rows, w, columns, w, channels).transpose(2, 3)
        tokens = self.attn(tokens.reshape(batch, rows * columns, w * w, channels), mask)
        tokens = tokens.view(batch, rows, columns, w, w, channels).transpose(2, 3)
        tokens = tokens.reshape(batch, height, width, channels)
        if self.shift:
            tokens = tokens.roll((self.shift, self.shift), dims=(1, 2))
        return tokens.permute(0, 3, 1, 2)


class _PointwiseProjection(nn.Module):
    """A 1x1 convolution, optionally normalised (`patch_embed` and `patch_unembed` of the official code)."""

    def __init__(self, channels: int, out_channels: int, normalise: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 1)
        self.norm = GroupNorm32(out_channels) if normalise else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class SwinLayer(nn.Module):
    """Swin blocks, alternately plain and shifted, between projections to and from the embedding width.

    `resolution` is the feature map's size at the network's `image_size`. If a window would cover the whole map, the
    window shrinks to it and nothing is shifted, also when the layer is used at another size later.
    """

    def __init__(
        self,
        channels: int,
        embed_dim: int,
        heads: int,
        depth: int,
        resolution: int,
        window: int,
        mlp_ratio: float,
        dropout: float,
        patch_norm: bool,
    ) -> None:
        super().__init__()
        self.window = min(window, resolution)
        self.patch_embed = _PointwiseProjection(channels, embed_dim, patch_norm)
        self.patch_unembed = _PointwiseProjection(embed_dim, channels, patch_norm)
        shift = window // 2 if resolution > window else 0
        self.blocks = nn.ModuleList(
            SwinBlock(embed_dim, heads, self.window, shift if i % 2 else 0, mlp_ratio, dropout) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.patch_unembed(x)
