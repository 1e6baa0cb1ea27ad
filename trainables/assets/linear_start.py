"""Starts an f4 autoencoder as a linear transform, so that training only has to improve on one.

From random weights, a narrow autoencoder needs thousands of steps before it passes an image's colours. Here it starts
with the principal components of 4 x 4 pixel blocks as its latents, and with the nearest block's mean colour as its
output. All residual branches start at zero. Two facts make the rest of the network linear:

- `silu(x) - silu(-x) == x`: the stream before a SiLU holds each value twice, once negated, and the next convolution
  takes the difference.
- A group normalisation over all channels divides by the deviation of the whole image. Two constant channels, one
  positive and one negative, dominate that deviation and fix it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

BLOCK = 4  # image pixels per latent pixel, along one side
BALLAST = 3.0  # deviation that the two constant channels give to a normalised stream
# Latent channels have deviations in proportion to this power of their eigenvalues. 0.5 is an orthonormal transform, the
# best for a codebook; 0 is whitening, which cost 2.7 dB with 8,192 codes in 6 channels. 0.35 cost 0.2 dB.
EIGENVALUE_POWER = 0.35


@torch.no_grad()
def block_components(images: Tensor, latent_channels: int) -> Tensor:
    """Principal components of 4 x 4 pixel blocks, around mid-grey.

    Args:
        images: (B, 3, H, W) in [-1, 1], sides multiples of 4.

    Returns:
        (48, 48), a component a row, by falling eigenvalue; columns are (colour, row, column) of a block. A block times
        a component has a deviation in proportion to its eigenvalue to the power `EIGENVALUE_POWER`; the mean square
        of the first `latent_channels` is 1.
    """
    blocks = F.unfold(images, BLOCK, stride=BLOCK).movedim(1, -1).flatten(0, 1)
    eigenvalues, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
    eigenvalues, vectors = eigenvalues.flip(0).clamp(min=1e-8), vectors.flip(1)
    scale = (eigenvalues[:latent_channels] ** (2 * EIGENVALUE_POWER)).mean().rsqrt()
    return (vectors * eigenvalues ** (EIGENVALUE_POWER - 0.5) * scale).T


@torch.no_grad()
def start_linear(model: VQModel | AutoencoderKL, components: Tensor) -> None:
    """Overwrites a new autoencoder of three levels, one normalisation group and one layer per block.

    A KL autoencoder's latents start with a deviation of exp(-3).

    Args:
        components: of `block_components`, for images like those that the autoencoder will see.
    """
    channels = model.config.latent_channels
    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.fill_(BALLAST)  # undoes the normalisation of a stream whose deviation is BALLAST
            module.bias.zero_()
        elif name.endswith((".conv2", ".to_out.0")) and isinstance(module, nn.Conv2d | nn.Linear):
            for parameter in module.parameters():
                parameter.zero_()
    _start_encoder(model, components)
    _start_decoder(model, components[:channels])


def _start_encoder(model: VQModel | AutoencoderKL, components: Tensor) -> None:
    encoder, channels = model.encoder, model.config.latent_channels
    first_down, second_down = (block.downsamplers[0].conv for block in encoder.down_blocks[:2])
    second_level, third_level = (block.resnets[0].conv_shortcut for block in encoder.down_blocks[1:])
    passed = min(second_down.out_channels, (third_level.out_channels - 2) // 2)
    _pass(encoder.conv_in, range(3))
    # A strided convolution sees pixels (2i, 2j) to (2i + 2, 2j + 2): four taps split an image into its four phases.
    phases = [(colour, row, column) for colour in range(3) for row in range(2) for column in range(2)]
    for index, (colour, row, column) in enumerate(phases):
        _clear(first_down, index)
        first_down.weight[index, colour, row, column] = 1
    _pass(second_level, range(len(phases)))
    blocks = components.view(-1, 3, BLOCK, BLOCK)
    for index in range(passed):
        _clear(second_down, index)
        for phase, (colour, row, column) in enumerate(phases):
            second_down.weight[index, phase, :2, :2] = blocks[index, colour, row::2, column::2]
    _pass(third_level, range(passed))
    _pass(third_level, range(passed), first=passed, factor=-1)
    _add_ballast(encoder.conv_in)
    for strided in (first_down, second_down):
        for index in (strided.out_channels - 2, strided.out_channels - 1):
            _clear(strided, index)
            strided.weight[index, index, 0, 0] = 1
    for shortcut in (second_level, third_level):
        _keep_ballast(shortcut)
    for index in range(channels):
        _clear(encoder.conv_out, index)
        encoder.conv_out.weight[index, index, 1, 1] = 1
        encoder.conv_out.weight[index, passed + index, 1, 1] = -1
    _pass(model.quant_conv, range(channels))
    _pass(model.post_quant_conv, range(channels))
    if isinstance(model, AutoencoderKL):  # the second half of the channels are the logarithms of the variances
        model.quant_conv.weight[channels:] = 0
        model.quant_conv.bias[channels:] = -6


def _start_decoder(model: VQModel | AutoencoderKL, components: Tensor) -> None:
    decoder, channels = model.decoder, len(components)
    _pass(decoder.conv_in, range(channels))
    mean_colours = torch.linalg.pinv(components).view(3, BLOCK * BLOCK, channels).mean(1)
    for colour in range(3):
        _clear(decoder.conv_in, channels + colour)
        decoder.conv_in.weight[channels + colour, :, 1, 1] = mean_colours[colour]
    _add_ballast(decoder.conv_in)
    ups = [block.upsamplers[0].conv for block in decoder.up_blocks[:2]]
    second_level, third_level = (block.resnets[0].conv_shortcut for block in decoder.up_blocks[1:])
    for convolution in (ups[0], second_level, ups[1]):
        _pass(convolution, range(channels + 3))
        _keep_ballast(convolution)
    for colour in range(3):
        _pass(third_level, [channels + colour], first=colour)
        _pass(third_level, [channels + colour], first=3 + colour, factor=-1)
        _clear(decoder.conv_out, colour)
        decoder.conv_out.weight[colour, colour, 1, 1] = 1
        decoder.conv_out.weight[colour, 3 + colour, 1, 1] = -1
    _keep_ballast(third_level)


def _clear(convolution: nn.Conv2d, output: int) -> None:
    convolution.weight[output] = 0
    convolution.bias[output] = 0  # type: ignore[index]


def _pass(convolution: nn.Conv2d, inputs: range | list[int], first: int | None = None, factor: float = 1.0) -> None:
    """Outputs from `first` on (the same numbers as the inputs by default) become these inputs times `factor`."""
    middle = convolution.kernel_size[0] // 2
    for place, channel in enumerate(inputs):
        output = channel if first is None else first + place
        _clear(convolution, output)
        convolution.weight[output, channel, middle, middle] = factor


def _add_ballast(convolution: nn.Conv2d) -> None:
    """The last two outputs become constants that alone give all outputs a deviation of BALLAST."""
    width = convolution.out_channels
    for output, sign in ((width - 2, 1), (width - 1, -1)):
        _clear(convolution, output)
        convolution.bias[output] = sign * BALLAST * math.sqrt(width / 2)  # type: ignore[index]


def _keep_ballast(convolution: nn.Conv2d) -> None:
    """Carries the last two channels on, so that their share of the deviation stays."""
    width, before = convolution.out_channels, convolution.in_channels
    for back in (2, 1):
        _pass(convolution, [before - back], first=width - back, factor=math.sqrt(width / before))
