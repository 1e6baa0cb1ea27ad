"""Controllable Feature Wrapping: a path for details of the degraded image from the encoder to the decoder.

Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution" (StableSR, IJCV 2024; `Decoder_Mix` in
`ldm/modules/diffusionmodules/model.py` of its code). Latents an eighth of the image's size lose the detail of small
text and faces. Trained modules fuse the encoder's features of the degraded image into the decoder's features of the
restored latents. The strength w in [0, 1] is chosen at inference: 0 is the decoder alone, 1 the most faithful.

The autoencoder is a diffusers `AutoencoderKL` of plain blocks (`DownEncoderBlock2D`, `UpDecoderBlock2D`), as in Stable
Diffusion. Levels are numbered from full resolution, 0; all but the first and the last are fused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from trainables.networks.autoencoder import LDM_NAMES, convert_ldm_state_dict, downsampling, ldm_architecture
from trainables.networks.checkpoint_files import load_strictly, read_weights


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the output of all previous ones; initially close to the identity.

    Wang et al., "ESRGAN" (ECCV workshops 2018).
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels + i * growth, growth if i < 4 else channels, 3, padding=1) for i in range(5)]
        with torch.no_grad():
            for conv in convs:
                weight, bias = conv.parameters()
                nn.init.kaiming_normal_(weight).mul_(0.1)
                nn.init.zeros_(bias)
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> the same shape."""
        *growing, last = self.convs
        features = x
        for conv in growing:
            features = torch.cat([features, F.leaky_relu(conv(features), 0.2)], dim=1)
        return x + 0.2 * last(features)


class ResidualInResidual(nn.Sequential):
    """ESRGAN's residual-in-residual dense block: a fifth of the output of three dense blocks, added to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> the same shape."""
        return x + 0.2 * super().forward(x)


class FusionBlock(nn.Module):
    """The residual that a level's two features add to the decoder's (`Fuse_sft_block_RRDB` of StableSR)."""

    def __init__(self, channels: int, norm_groups: int, dense_blocks: int, growth: int) -> None:
        super().__init__()

        def residual(in_channels: int) -> ResnetBlock2D:
            return ResnetBlock2D(
                in_channels=in_channels, out_channels=channels, temb_channels=None, groups=norm_groups, eps=1e-6
            )

        self.merge = residual(2 * channels)
        self.dense = nn.Sequential(*(ResidualInResidual(channels, growth) for _ in range(dense_blocks)))
        self.refine = residual(channels)

    def forward(self, encoder_feature: Tensor, decoder_feature: Tensor) -> Tensor:
        """Two `(B, C, H, W)` -> `(B, C, H, W)`."""
        merged = self.merge(torch.cat([encoder_feature, decoder_feature], dim=1), temb=None)
        return self.refine(self.dense(merged), temb=None)


class ControllableFeatureWrapping(nn.Module):
    """The fusion modules of an autoencoder: the trained part of StableSR's second stage.

    Args:
        block_out_channels: widths of the autoencoder's levels, from full resolution: `vae.config.block_out_channels`.
        norm_groups: groups of the normalisation: `vae.config.norm_num_groups`.
        dense_blocks: residual-in-residual dense blocks per level.
        growth: channels that each convolution of a dense block adds.

    Raises:
        ValueError: fewer than three levels, so there is no inner level.
    """

    def __init__(
        self, block_out_channels: Sequence[int], norm_groups: int = 32, dense_blocks: int = 2, growth: int = 32
    ) -> None:
        super().__init__()
        if len(block_out_channels) < 3:
            raise ValueError(
                f"block_out_channels={tuple(block_out_channels)} is not accepted: give an autoencoder of 3 levels or "
                "more, since the first and the last are not fused"
            )
        self.levels = nn.ModuleList(
            FusionBlock(channels, norm_groups, dense_blocks, growth) for channels in block_out_channels[1:-1]
        )

    def forward(self, level: int, encoder_feature: Tensor, decoder_feature: Tensor, strength: float) -> Tensor:
        """The decoder's feature of a level, 1 or more, with the encoder's fused in, `(B, C, H, W)`; unchanged at
        strength 0.

        Raises:
            ValueError: `strength` is outside [0, 1].
        """
        _check_fraction("strength", strength)
        if strength == 0:
            return decoder_feature
        return decoder_feature + strength * self.levels[level - 1](encoder_feature, decoder_feature)


def encode_with_features(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The mean of the latents' distribution, as from `vae.encode`, and features of the encoder.

    Args:
        vae: the autoencoder.
        images: `(B, 3, H, W)` in [-1, 1].

    Returns:
        Unscaled latents `(B, C, H / f, W / f)`, and the features of the inner levels, from fine to coarse.

    Raises:
        ValueError: H or W is not a multiple of the autoencoder's factor f.
    """
    factor = downsampling(vae)
    if images.ndim != 4 or images.shape[2] % factor or images.shape[3] % factor:
        raise ValueError(f"images are {tuple(images.shape)}; they must be (B, 3, H, W), sides multiples of {factor}")
    encoder = vae.encoder
    h = encoder.conv_in(images)
    features = []
    for level, block in enumerate(encoder.down_blocks):
        for resnet in block.resnets:
            h = resnet(h, temb=None)
        if 0 < level < len(encoder.down_blocks) - 1:
            features.append(h)
        for downsampler in block.downsamplers or ():
            h = downsampler(h)
    h = encoder.mid_block(h)
    h = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(h)))
    moments = h if vae.quant_conv is None else vae.quant_conv(h)
    return moments.chunk(2, dim=1)[0], features


def decode_with_features(
    vae: AutoencoderKL,
    cfw: ControllableFeatureWrapping,
    latents: Tensor,
    features: Sequence[Tensor],
    strength: float,
) -> Tensor:
    """Decodes latents with the features of the degraded image fused in; at strength 0 exactly as `vae.decode`.

    Gradients pass through the decoder to all levels of `cfw`; freeze the autoencoder to train only these.

    Args:
        vae: the autoencoder.
        cfw: its fusion modules.
        latents: restored latents `(B, C, h, w)`, unscaled: divided by `vae.config.scaling_factor` after diffusion.
        features: those of `encode_with_features` for the degraded images.
        strength: w in [0, 1].

    Returns:
        Images `(B, 3, f h, f w)`, in about [-1, 1], not clamped.

    Raises:
        ValueError: `strength` is outside [0, 1].
    """
    decoder = vae.decoder
    h = latents if vae.post_quant_conv is None else vae.post_quant_conv(latents)
    h = decoder.mid_block(decoder.conv_in(h))
    for level, block in zip(reversed(range(len(decoder.up_blocks))), decoder.up_blocks, strict=True):
        for resnet in block.resnets:
            h = resnet(h, temb=None)
        if 0 < level <= len(cfw.levels):
            h = cfw(level, features[level - 1], h, strength)
        for upsampler in block.upsamplers or ():
            h = upsampler(h)
    return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))


def fidelity_blend(restored: Tensor, reconstruction: Tensor, weight: float) -> Tensor:
    """`(1 - weight) restored + weight reconstruction`: trades realism for fidelity, on images of any range.

    Args:
        restored: output images of the diffusion.
        reconstruction: the degraded images, encoded and decoded by the autoencoder.
        weight: in [0, 1].

    Raises:
        ValueError: `weight` is outside [0, 1].
    """
    _check_fraction("weight", weight)
    return torch.lerp(restored, reconstruction, weight)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is not accepted: give a number in [0, 1]")


def load_official_cfw(path: str | Path) -> tuple[AutoencoderKL, ControllableFeatureWrapping]:
    """The autoencoder and the fusion modules of StableSR's `vqgan_cfw_00011.ckpt`, of any width, in evaluation mode on
    the CPU.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: weights without fusion modules.
        RuntimeError: weights missing, unexpected or of other shapes; the message names them.
    """
    state = read_weights(Path(path), without=("loss.",), own=LDM_NAMES)
    vae_weights, cfw_weights = convert_official_cfw(state)
    widths, layers = ldm_architecture(state)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=state["post_quant_conv.weight"].shape[1],
    )
    cfw = ControllableFeatureWrapping(vae.config.block_out_channels, vae.config.norm_num_groups)
    load_strictly(vae, vae_weights)
    load_strictly(cfw, cfw_weights)
    return vae.eval(), cfw.eval()


def convert_official_cfw(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Converts weights of StableSR's `AutoencoderKLResi` to diffusers' `AutoencoderKL` and
    `ControllableFeatureWrapping`.

    Its loss networks are left out. Keys of another layout stay unchanged, so that a strict load names them.

    Raises:
        ValueError: no fusion modules among the weights.
    """
    vae, cfw = {}, {}
    for key, value in state.items():
        if fusion := re.fullmatch(r"decoder\.fusion_layer_(\d+)\.(.+)", key):
            cfw[f"levels.{int(fusion[1]) - 1}.{_rename_fusion(fusion[2])}"] = value
        elif not key.startswith("loss."):
            vae[key] = value
    if not cfw:
        raise ValueError(f"no decoder.fusion_layer_* among the {len(state)} weights; these are not of StableSR's CFW")
    return convert_ldm_state_dict(vae), cfw


def _rename_fusion(key: str) -> str:
    # The official names number dense blocks and their convolutions from 1.
    if conv := re.fullmatch(r"encode_enc_2\.(\d+)\.rdb(\d+)\.conv(\d+)\.(.+)", key):
        return f"dense.{conv[1]}.{int(conv[2]) - 1}.convs.{int(conv[3]) - 1}.{conv[4]}"
    key = key.replace("encode_enc_1.conv_out.", "encode_enc_1.conv_shortcut.")
    return key.replace("encode_enc_1.", "merge.").replace("encode_enc_3.", "refine.")
