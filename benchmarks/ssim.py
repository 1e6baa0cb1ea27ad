"""How much faster is SSIM by shifted sums than torchmetrics' in the same precision, and how far apart are the values?

Both compute in float64, on one thread, on the same random images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from trainables.metrics.pixel import ssim

_RADIUS = 5  # of the window: torchmetrics' own mean also counts windows that extend over the border


def by_torchmetrics(restored: Tensor, target: Tensor) -> Tensor:
    """(B,) SSIM of (B, C, H, W) images in [0, 1]."""
    _, similarity = structural_similarity_index_measure(
        restored.double(), target.double(), data_range=1.0, sigma=1.5, reduction="none", return_full_image=True
    )
    inside = slice(_RADIUS, -_RADIUS)
    return similarity[..., inside, inside].mean(dim=(1, 2, 3)).float()


def seconds(work: Callable[[Tensor, Tensor], Tensor], restored: Tensor, target: Tensor, turns: int) -> float:
    """CPU seconds of a call, the median of `turns`."""
    taken = []
    for _ in range(turns):
        started = time.process_time()
        work(restored, target)
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def main(arguments: Sequence[str] | None = None) -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--sizes", type=int, nargs="+", default=[64, 256], help="sides of square images (64 256)")
    flags.add_argument("--batch", type=int, default=16, help="images (16)")
    flags.add_argument("--turns", type=int, default=3, help="calls, of which the median counts (3)")
    given = flags.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{'size':>6} {'channels':>9} torchmetrics, ms {'ours, ms':>9} {'ratio':>6} {'difference':>11}")
    for size in given.sizes:
        for channels in (3, 1):
            generator = torch.Generator().manual_seed(0)
            target = torch.rand(given.batch, channels, size, size, generator=generator)
            restored = (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
            difference = float((ssim(restored, target) - by_torchmetrics(restored, target)).abs().max())
            theirs, ours = (seconds(work, restored, target, given.turns) for work in (by_torchmetrics, ssim))
            measured = f"{1e3 * theirs:16.1f} {1e3 * ours:9.1f} {theirs / ours:6.1f}"
            print(f"{size:6} {channels:9} {measured} {difference:11.1e}")


if __name__ == "__main__":
    main()
