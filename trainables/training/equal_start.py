"""Workers of a group must start from the same step and the same weights, or they would train a mixture of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class UnequalStart(RuntimeError):
    """The workers of a group start from different steps or weights."""


def check_equal_start(step: int, parts: Mapping[str, nn.Module], device: torch.device) -> None:
    """Compares the workers of a group, by sums of the bits of their weights, which are exact on any processor.

    They differ if nodes see different checkpoints, because shared storage lags behind, or have different versions of a
    base in their caches.

    Args:
        step: at which this worker starts. parts: all its networks, also frozen ones.

    Raises:
        UnequalStart: in every worker.
    """
    found = torch.stack([torch.tensor(step, device=device), *(_bits(part, device) for part in parts.values())])
    least, most = found.clone(), found.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if least[0] != most[0]:
        raise UnequalStart(f"the workers start from different steps, {int(least[0])} and {int(most[0])}")
    unequal = [name for name, low, high in zip(parts, least[1:], most[1:], strict=True) if low != high]
    if unequal:
        raise UnequalStart(
            f"the workers start from different weights of {', '.join(unequal)}; all nodes must read the same files"
        )


def _bits(part: nn.Module, device: torch.device) -> Tensor:
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in (*part.parameters(), *part.buffers()):
        bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
        total += bits.sum(dtype=torch.int64).to(device)
    return total
