"""Second-order degradation of Real-ESRGAN and SinSR: blur, resize, noise and JPEG, applied twice.

The order of operations and every range follow `RealESRGANDataset` and `prepare_data` of SinSR. Two steps of the
degradation itself differ; docs/recipes.md lists the differences in crops and in the number of degradations per image:

- JPEG is the real encoder and decoder (libjpeg through Pillow, 4:2:0); the reference approximates it with tensor
  operations. Here quality is a whole number, enlarged chroma planes are interpolated, and the decoded image has
  8 bits.
- It works on one image at a time, and draws every random number, noise included, from a given
  `numpy.random.Generator`.

Targets are not sharpened here, see `sharpening.py`: SinSR's published settings switch it off (`use_sharp: False`).
"""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import torch
from PIL import Image
from scipy import fft
from torch.nn import functional

from trainables.images.degradations.kernels import choose, random_blur_kernel, random_sinc_kernel, random_size
from trainables.settings.degradation import DegradationSettings, Range

_RESIZE_MODES = ("area", "bilinear", "bicubic")
_LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)  # the reference's weights for grey noise


def degrade(target: np.ndarray, settings: DegradationSettings, rng: np.random.Generator, scale: int = 4) -> np.ndarray:
    """A degraded version of `target`, `scale` times smaller. It depends on the arguments alone.

    Args:
        target: uint8 (H, W, 3), both sides multiples of `scale`.
        settings: ranges to draw from.
        rng: source of all randomness; its state advances.

    Returns:
        uint8 (H / scale, W / scale, 3).

    Raises:
        ValueError: `target` has another type or shape.
    """
    if target.dtype != np.uint8 or target.ndim != 3 or target.shape[2] != 3:
        raise ValueError(f"target is {target.dtype} {target.shape}: give uint8 (H, W, 3)")
    height, width = target.shape[0] // scale, target.shape[1] // scale
    if (height * scale, width * scale) != target.shape[:2] or 0 in (height, width):
        raise ValueError(f"target is {target.shape[0]} x {target.shape[1]}: give multiples of scale={scale}")

    s = settings
    image = target.astype(np.float32) / 255
    image = blur(image, blur_kernel(rng, s))
    image = resize(image, factor=_random_factor(rng, s.resize_prob, s.resize_range), mode=_random_mode(rng))
    image = _add_noise(image, rng, s.gaussian_noise_prob, s.noise_range, s.poisson_scale_range, s.gray_noise_prob)
    image = _random_jpeg(image, rng, s.jpeg_range)

    if rng.random() < s.second_order_prob:
        if rng.random() < s.second_blur_prob:
            image = blur(image, blur_kernel(rng, s, "2"))
        factor = _random_factor(rng, s.resize_prob2, s.resize_range2)
        size = max(1, int(height * factor)), max(1, int(width * factor))
        image = resize(image, size=size, mode=_random_mode(rng))
        image = _add_noise(
            image, rng, s.gaussian_noise_prob2, s.noise_range2, s.poisson_scale_range2, s.gray_noise_prob2
        )

    # The last JPEG comes before or after the last resize and sinc filter, with equal probability.
    jpeg_last = rng.random() < 0.5
    if not jpeg_last:
        image = _random_jpeg(image, rng, s.jpeg_range2)
    image = resize(image, size=(height, width), mode=_random_mode(rng))
    if rng.random() < s.final_sinc_prob:
        side = random_size(rng, s.smallest_blur_kernel2, s.blur_kernel_size2)
        image = blur(image, random_sinc_kernel(rng, side))
    if jpeg_last:
        image = _random_jpeg(image, rng, s.jpeg_range2)
    return _to_bytes(image)


_OF_A_KERNEL = (
    "smallest_blur_kernel",
    "blur_kernel_size",
    "sinc_prob",
    "kernel_prob",
    "blur_sigma",
    "betag_range",
    "betap_range",
)


def blur_kernel(rng: np.random.Generator, settings: DegradationSettings, end: Literal["", "2"] = "") -> np.ndarray:
    """A random kernel of the first round, or with "2", which ends the names of its settings, of the second."""
    return random_blur_kernel(rng, *(getattr(settings, name + end) for name in _OF_A_KERNEL))


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlates each channel of `image`, float32 (H, W, C), with `kernel` (k, k), mirrored at the borders.

    Uses an FFT: 0.5 ms for 128 px with any kernel; direct convolution takes up to 3 ms.
    """
    size, radius = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    height, width = padded.shape[:2]
    fast = fft.next_fast_len(height, real=True), fft.next_fast_len(width, real=True)
    flipped = kernel[::-1, ::-1, None].astype(np.float32)
    product = fft.rfft2(padded, s=fast, axes=(0, 1)) * fft.rfft2(flipped, s=fast, axes=(0, 1))
    return fft.irfft2(product, s=fast, axes=(0, 1))[size - 1 : height, size - 1 : width]


def resize(
    image: np.ndarray, mode: str, factor: float | None = None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Resamples `image`, float32 (H, W, C), by `factor` or to `size` (height, width).

    `mode` is area, bilinear or bicubic. As in the reference, the last two do not antialias: aliasing is one of the
    degradations.
    """
    batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    out = functional.interpolate(batch, size=size, scale_factor=factor, mode=mode)
    return out[0].permute(1, 2, 0).numpy()


def gaussian_noise(shape: tuple[int, int], rng: np.random.Generator, sigma: float, gray: bool) -> np.ndarray:
    """float32 (H, W, 3), or (H, W, 1) if `gray`, with standard deviation `sigma` / 255."""
    return rng.standard_normal((*shape, 1 if gray else 3), dtype=np.float32) * np.float32(sigma / 255)


def poisson_noise(image: np.ndarray, rng: np.random.Generator, scale: float, gray: bool) -> np.ndarray:
    """`scale` times the shot noise of `image`, float32 (H, W, 3) in [0, 1].

    As in the reference, the photon count at full white is the number of different 8-bit levels in the image, rounded
    up to a power of two. So images with few tones are noisier.
    """
    levels = _to_bytes(image @ _LUMA[:, None] if gray else image)
    photons = 2.0 ** np.ceil(np.log2(np.count_nonzero(np.bincount(levels.ravel(), minlength=256))))
    clean = levels.astype(np.float32) / 255
    return ((rng.poisson(clean * photons) / photons - clean) * scale).astype(np.float32)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Encodes and decodes `image`, float32 (H, W, 3) in [0, 1], as JPEG of `quality` 1 to 100."""
    buffer = io.BytesIO()
    Image.fromarray(_to_bytes(image)).save(buffer, format="JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as decoded:
        return np.asarray(decoded, dtype=np.float32) / 255


def _add_noise(
    image: np.ndarray,
    rng: np.random.Generator,
    gaussian_prob: float,
    sigma_range: Range,
    scale_range: Range,
    gray_prob: float,
) -> np.ndarray:
    gaussian = rng.random() < gaussian_prob
    strength = rng.uniform(*(sigma_range if gaussian else scale_range))
    gray = rng.random() < gray_prob
    if gaussian:
        noise = gaussian_noise((image.shape[0], image.shape[1]), rng, strength, gray)
    else:
        noise = poisson_noise(image, rng, strength, gray)
    return np.clip(image + noise, 0, 1)


def _random_jpeg(image: np.ndarray, rng: np.random.Generator, quality_range: Range) -> np.ndarray:
    return jpeg(image, round(rng.uniform(*quality_range)))


def _random_factor(rng: np.random.Generator, weights: tuple[float, ...], limits: Range) -> float:
    direction = choose(rng, weights)
    if direction == 0:
        return rng.uniform(1.0, limits[1])
    return rng.uniform(limits[0], 1.0) if direction == 1 else 1.0


def _random_mode(rng: np.random.Generator) -> str:
    return _RESIZE_MODES[rng.integers(len(_RESIZE_MODES))]


def _to_bytes(image: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8, rounded and clipped."""
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)
