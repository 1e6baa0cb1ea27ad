"""Settings of the validation metrics. Which metrics a sweep reports is a matter of its flags."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.settings.checks import require_within
from trainables.settings.setting import setting


@dataclass(frozen=True)
class MetricSettings:
    """How metrics are computed.

    Attributes:
        border: pixels at each edge that PSNR and SSIM leave out, over RGB and on luma; papers on super-resolution by 4
            leave out 4. Metrics of deep features see whole images.
    """

    border: int = setting(0, within=(0, 1000), shared=True)

    def __post_init__(self) -> None:
        require_within("metrics", self)
