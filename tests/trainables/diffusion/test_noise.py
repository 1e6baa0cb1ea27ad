"""Multi-resolution noise: Marigold's levels, at unit variance for every image."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trainables.diffusion.noise import coarse_levels, multi_resolution_noise


def drawn(seed: int, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    white = torch.randn((batch, 2, 32, 32), generator=torch.Generator().manual_seed(seed))
    return white, coarse_levels(white.shape, torch.Generator().manual_seed(seed + 1))


def test_levels_are_those_of_marigold() -> None:
    """Its loop, with the same draws: the side is divided by r^i of the side before, with a new r for each level."""
    white, levels = drawn(0, batch=1)
    generator, expected, side = torch.Generator().manual_seed(1), white.clone(), 32
    for level in range(10):
        ratio = torch.rand(1, generator=generator) * 2 + 2
        side = max(1, int(side / (ratio**level)))
        coarse = torch.randn(1, 2, side, side, generator=generator)
        expected += F.interpolate(coarse, (32, 32), mode="bilinear") * 0.9**level
        if side == 1:
            break
    found = multi_resolution_noise(white, levels, torch.tensor([0.9]))
    torch.testing.assert_close(found, expected / expected.std())


def test_every_image_has_unit_variance() -> None:
    """Scaled as a batch, images of low strength would have less: this is why we differ from Marigold."""
    white, levels = drawn(2)
    strength = torch.tensor([0.0, 0.1, 0.5, 0.9])
    noise = multi_resolution_noise(white, levels, strength)
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(4), rtol=1e-5, atol=1e-5)
    summed = white + (levels * (strength[:, None] ** torch.arange(levels.shape[1]))[:, :, None, None, None]).sum(1)
    assert (summed / summed.std())[0].std() < 0.95


def test_noise_of_strength_zero_keeps_the_first_level() -> None:
    """0^0 is 1, as in Marigold: two levels of full size, so white noise again."""
    white, levels = drawn(4)
    noise = multi_resolution_noise(white, levels, torch.zeros(4))
    both = white + levels[:, 0]
    torch.testing.assert_close(noise, both / both.std(dim=(1, 2, 3), keepdim=True))
