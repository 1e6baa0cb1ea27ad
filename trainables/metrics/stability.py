"""Stability: how much restorations of one image differ if only the sampler's noise differs (G-STD and L-STD).

L. Sun et al., "Improving the Stability and Efficiency of Diffusion Models for Content Consistent Super-Resolution"
(CCSR), arXiv 2401.00877. G-STD is the deviation of an image-level metric, L-STD that of the pixels. As in CCSR's
scripts `cal_iqa/iqa_G-STD.py` and `iqa_L-STD.py`, deviations are those of a population (divided by the number of
seeds) and pixels are in [0, 1]. The scripts read 8-bit files, and their L-STD ignores a border of 4 pixels; here pixels
are not rounded and none are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainables.metrics.names import global_std_name


def global_std(values: Tensor) -> Tensor:
    """G-STD of a metric.

    Args:
        values: (S, B), the metric of each of B images restored with S >= 2 seeds.

    Returns:
        (B,) deviations over the seeds, in the metric's unit.

    Raises:
        ValueError: fewer than two seeds.
    """
    _check_seeds(values)
    return values.std(dim=0, correction=0)


def local_std(restorations: Tensor) -> Tensor:
    """L-STD.

    Args:
        restorations: (S, B, C, H, W) in [0, 1], B images restored with S >= 2 seeds.

    Returns:
        (B,) deviations of the pixels over the seeds, averaged over pixels and channels.

    Raises:
        ValueError: fewer than two seeds.
    """
    _check_seeds(restorations)
    return restorations.std(dim=0, correction=0).mean(dim=(1, 2, 3))


def measure_stability(values: Sequence[Mapping[str, Tensor]], restorations: Tensor) -> dict[str, Tensor]:
    """L-STD, and G-STD of every metric in `values`, under their names in `METRICS`.

    Args:
        values: for each seed the result of `MetricSet`: metric name -> (B,).
        restorations: (S, B, 3, H, W) in [0, 1], in the order of `values`.

    Returns:
        name -> (B,).

    Raises:
        ValueError: fewer than two seeds.
    """
    spread = {global_std_name(name): global_std(torch.stack([one[name] for one in values])) for name in values[0]}
    return spread | {"val/l_std": local_std(restorations)}


def _check_seeds(values: Tensor) -> None:
    if len(values) < 2:
        raise ValueError(f"restorations with {len(values)} seed(s): a deviation needs 2 or more")
