"""Settings of the simulated degradation. Nothing here imports torch, so that the command line checks them at once.

Names and published values follow `configs/SinSR.yaml` (SinSR, Wang et al., CVPR 2024), which has them from ResShift
and Real-ESRGAN (Wang et al., ICCVW 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from trainables.common.errors import InputError

Range = tuple[float, float]

KERNEL_KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")

# Accepted limits of every (low, high) field, both ends included.
_RANGE_LIMITS: dict[str, Range] = {
    "blur_sigma": (0.01, 50.0),
    "betag_range": (0.01, 20.0),
    "betap_range": (0.01, 20.0),
    "resize_range": (0.1, 8.0),
    "noise_range": (0.0, 255.0),
    "poisson_scale_range": (0.0, 100.0),
    "jpeg_range": (1.0, 100.0),
}
_AROUND_ONE = ("betag_range", "betap_range", "resize_range")
_AND_ONE = " and low <= 1 <= high"
_WEIGHTS = {"kernel_prob": KERNEL_KINDS, "resize_prob": ("up", "down", "keep")}
_ODD = {"blur_kernel_size": (5, 51), "smallest_blur_kernel": (3, 49)}


def _require(accepted: object, name: str, value: object, expected: str) -> None:
    if not accepted:
        raise InputError.of(name, value, expected)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: object, count: int) -> tuple[float, ...] | None:
    if isinstance(value, list | tuple) and len(value) == count and all(_is_number(item) for item in value):
        return tuple(float(item) for item in value)
    return None


def range_text(limits: Range, around_one: bool = False) -> str:
    """What a (low, high) field accepts."""
    return f"(low, high) with {limits[0]:g} <= low <= high <= {limits[1]:g}{_AND_ONE if around_one else ''}"


def accepted_text(field: str) -> str:
    """What a field of `DegradationSettings` accepts, for messages and lists of settings."""
    stem = field.removesuffix("2")
    if stem in _RANGE_LIMITS:
        return range_text(_RANGE_LIMITS[stem], stem in _AROUND_ONE)
    if stem in _WEIGHTS:
        return f"weights, not negative and not all 0, for {', '.join(_WEIGHTS[stem])}"
    if stem in _ODD:
        return f"an odd number, {_ODD[stem][0]} to {_ODD[stem][1]}"
    return "a probability from 0 to 1"


def _checked_range(name: str, value: object, limits: Range, around_one: bool) -> Range:
    pair = _numbers(value, 2)
    expected = range_text(limits, around_one)
    if pair is None or not limits[0] <= pair[0] <= pair[1] <= limits[1]:
        raise InputError.of(name, value, expected)
    if around_one and not pair[0] <= 1 <= pair[1]:
        raise InputError.of(name, value, expected)
    return pair[0], pair[1]


def _checked_weights(name: str, value: object, kinds: tuple[str, ...], expected: str) -> tuple[float, ...]:
    weights = _numbers(value, len(kinds))
    if weights is None or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise InputError.of(name, value, expected)
    return weights


@dataclass(frozen=True)
class DegradationSettings:
    """Ranges and probabilities of the second-order degradation; the defaults are SinSR's published values.

    Fields that end in 2 are those of the second round. A range is (low, high); values are drawn uniformly. Lists from
    YAML are accepted for tuples.

    Attributes:
        smallest_blur_kernel: smallest side of a blur kernel, an odd number from 3, pixels. The second round's is also
            that of the last sinc filter. 3 in ResShift and SinSR, 7 in StableSR, CCSR, OSEDiff and PiSA-SR.
        blur_kernel_size: sides are drawn from the odd numbers *below* this one, as ResShift and SinSR read it; pixels.
        kernel_prob: relative weights of `KERNEL_KINDS`.
        sinc_prob: share of sinc (ringing) kernels among the blur kernels; `kernel_prob` draws the others.
        blur_sigma: standard deviation of the blur along each axis, pixels.
        betag_range, betap_range: shape of generalized Gaussian and plateau kernels; below and above 1 equally often.
        resize_prob: relative weights of (up, down, keep).
        resize_range: strongest downscale and upscale, as a factor; in the second round relative to the degraded size.
        gaussian_noise_prob: share of images with Gaussian noise; the others get Poisson noise.
        noise_range: standard deviation of the Gaussian noise, in 8-bit levels (0 to 255).
        poisson_scale_range: multiplier of the Poisson noise.
        gray_noise_prob: share of images whose noise is equal in the three channels.
        jpeg_range: JPEG quality, 1 to 100.
        second_order_prob: share of images that get the second blur, resize and noise.
        second_blur_prob: share of these images that are blurred again.
        final_sinc_prob: share of images that end with a sinc filter.

    Raises:
        InputError: a value outside its range; the message names the field, the value and the accepted values.
    """

    smallest_blur_kernel: int = 3
    blur_kernel_size: int = 21
    kernel_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: float = 0.1
    blur_sigma: Range = (0.2, 3.0)
    betag_range: Range = (0.5, 4.0)
    betap_range: Range = (1.0, 2.0)
    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Range = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    noise_range: Range = (1.0, 30.0)
    poisson_scale_range: Range = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    jpeg_range: Range = (30.0, 95.0)

    second_order_prob: float = 0.5
    second_blur_prob: float = 0.8
    smallest_blur_kernel2: int = 3
    blur_kernel_size2: int = 15
    kernel_prob2: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob2: float = 0.1
    blur_sigma2: Range = (0.2, 1.5)
    betag_range2: Range = (0.5, 4.0)
    betap_range2: Range = (1.0, 2.0)
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: Range = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: Range = (1.0, 25.0)
    poisson_scale_range2: Range = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: Range = (30.0, 95.0)

    final_sinc_prob: float = 0.8

    def __post_init__(self) -> None:
        for spec in fields(self):
            name, stem = f"pairs.degradation.{spec.name}", spec.name.removesuffix("2")
            value, expected = getattr(self, spec.name), accepted_text(spec.name)
            if stem in _RANGE_LIMITS:
                value = _checked_range(name, value, _RANGE_LIMITS[stem], around_one=stem in _AROUND_ONE)
            elif stem in _WEIGHTS:
                value = _checked_weights(name, value, _WEIGHTS[stem], expected)
            elif stem in _ODD:
                least, most = _ODD[stem]
                _require(_is_integer(value) and least <= value <= most and value % 2, name, value, expected)
            else:
                _require(_is_number(value) and 0 <= value <= 1, name, value, expected)
            object.__setattr__(self, spec.name, value)
        for end in ("", "2"):
            smallest, below = (getattr(self, f"{name}{end}") for name in ("smallest_blur_kernel", "blur_kernel_size"))
            accepted = f"below pairs.degradation.blur_kernel_size{end}={below}"
            _require(smallest < below, f"pairs.degradation.smallest_blur_kernel{end}", smallest, accepted)


# Milder ranges for the laptop sample. Blur, resampling, noise and JPEG still vary, but a tiny network can restore
# visible detail after a minute of training on a CPU.
MILD = DegradationSettings(
    blur_kernel_size=13,
    sinc_prob=0.0,
    blur_sigma=(0.4, 1.5),
    resize_prob=(0.1, 0.4, 0.5),
    resize_range=(0.6, 1.2),
    noise_range=(5.0, 20.0),
    poisson_scale_range=(0.2, 1.5),
    jpeg_range=(40.0, 80.0),
    second_order_prob=0.1,
    blur_kernel_size2=7,
    sinc_prob2=0.0,
    blur_sigma2=(0.2, 0.6),
    resize_range2=(0.8, 1.2),
    noise_range2=(1.0, 4.0),
    poisson_scale_range2=(0.05, 0.3),
    jpeg_range2=(70.0, 95.0),
    final_sinc_prob=0.2,
)
