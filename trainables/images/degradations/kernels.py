"""Blur kernels of blind super-resolution: Gaussian, generalized Gaussian, plateau and sinc.

They follow Real-ESRGAN (Wang et al., ICCVW 2021, section 3 and supplement) and agree numerically with its public
implementation, `basicsr/data/degradations.py`. All kernels are float64 (size, size) with sum 1, indexed
[row, column]; `size` is odd and the centre is in the middle.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from trainables.settings.degradation import KERNEL_KINDS, Range


def _mahalanobis(size: int, sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    """Squared Mahalanobis distance of every pixel from the centre; the covariance is rotated by `theta`."""
    axis = np.arange(size) - size // 2
    x, y = axis[None, :], axis[:, None]
    along = (math.cos(theta) * x + math.sin(theta) * y) / sigma_x
    across = (math.cos(theta) * y - math.sin(theta) * x) / sigma_y
    return along**2 + across**2


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, theta: float = 0.0) -> np.ndarray:
    """Gaussian with deviations `sigma_x`, `sigma_y` (pixels) along axes rotated by `theta` (radians)."""
    return generalized_gaussian_kernel(size, sigma_x, sigma_y, theta, beta=1.0)


def generalized_gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """exp(-d^beta / 2) of the squared distance d: heavier tails for `beta` below 1, closer to a box above."""
    kernel = np.exp(-0.5 * _mahalanobis(size, sigma_x, sigma_y, theta) ** beta)
    return kernel / kernel.sum()


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float = 1.0) -> np.ndarray:
    """1 / (1 + d^beta) of the squared distance d: a flat top with power-law flanks."""
    kernel = 1 / (1 + _mahalanobis(size, sigma_x, sigma_y, theta) ** beta)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Circular ideal low-pass filter, cut to the window: it rings around edges, as over-sharpening does.

    `cutoff` is in radians per pixel; pi passes all frequencies along a row.
    """
    axis = np.arange(size) - size // 2
    radius = np.hypot(axis[None, :], axis[:, None])
    radius[size // 2, size // 2] = 1.0  # avoids 0 / 0; the limit at the centre is set below
    kernel = cutoff * special.j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return kernel / kernel.sum()


def random_size(rng: np.random.Generator, smallest: int, below: int) -> int:
    """An odd size of at least `smallest` and less than `below`; both are odd."""
    return int(rng.integers(smallest // 2, below // 2)) * 2 + 1


def random_sinc_kernel(rng: np.random.Generator, size: int, lowest_cutoff: float = math.pi / 3) -> np.ndarray:
    """A sinc kernel with a random cutoff in [`lowest_cutoff`, pi]."""
    return sinc_kernel(size, rng.uniform(lowest_cutoff, math.pi))


def random_blur_kernel(
    rng: np.random.Generator,
    smallest: int,
    below: int,
    sinc_prob: float,
    kernel_prob: tuple[float, ...],
    blur_sigma: Range,
    betag_range: Range,
    betap_range: Range,
) -> np.ndarray:
    """A random blur kernel, drawn as in `RealESRGANDataset`; see `DegradationSettings` for the arguments."""
    size = random_size(rng, smallest, below)
    if rng.random() < sinc_prob:
        return random_sinc_kernel(rng, size, math.pi / 3 if size < 13 else math.pi / 5)

    kind = KERNEL_KINDS[choose(rng, kernel_prob)]
    sigma_x = sigma_y = rng.uniform(*blur_sigma)
    theta = 0.0
    if kind.endswith("aniso"):
        sigma_y = rng.uniform(*blur_sigma)
        theta = rng.uniform(-math.pi, math.pi)
    if kind.startswith("generalized"):
        return generalized_gaussian_kernel(size, sigma_x, sigma_y, theta, _random_beta(rng, betag_range))
    if kind.startswith("plateau"):
        return plateau_kernel(size, sigma_x, sigma_y, theta, _random_beta(rng, betap_range))
    return gaussian_kernel(size, sigma_x, sigma_y, theta)


def choose(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    """An index drawn in proportion to `weights`, with one uniform number."""
    at = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        if at < weight:
            return index
        at -= weight
    return max(index for index, weight in enumerate(weights) if weight > 0)  # the sum was rounded below the number


def _random_beta(rng: np.random.Generator, beta_range: Range) -> float:
    low, high = beta_range
    return rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)
