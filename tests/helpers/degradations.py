"""Degradations that several tests use."""

from __future__ import annotations

from trainables.settings.degradation import DegradationSettings

ONLY_RESIZED = DegradationSettings(
    sinc_prob=0.0,
    kernel_prob=(1, 0, 0, 0, 0, 0),
    blur_sigma=(0.1, 0.1),
    resize_prob=(0, 0, 1),
    gaussian_noise_prob=1.0,
    noise_range=(0, 0),
    jpeg_range=(100, 100),
    second_order_prob=0.0,
    jpeg_range2=(100, 100),
    final_sinc_prob=0.0,
)
"""Everything but the resizing is turned down: no visible blur, no noise, JPEG of the best quality."""
