"""The losses of a method's phases, as modules that DistributedDataParallel can wrap, and the parts of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.methods.method import Batch, LossTerm, Method, Phase

_NETWORKS = "networks"  # the attribute of `_Losses`


class _Losses(nn.Module):
    """A method's losses as a module's forward pass.

    DistributedDataParallel expects one forward pass per step, however often the method runs its networks inside.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.networks = method.networks
        self._losses = method.losses

    def forward(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        return self._losses(phase, batch, step)


def losses_by_phase(method: Method, in_group: bool) -> dict[str, nn.Module]:
    """The losses of each phase, by its name. The workers of a group exchange the gradients of its own parameters only.

    Phases update the same parameters or entirely different ones. What no phase updates is the same in all workers from
    the start: read from the same files, or drawn with the same seed.
    """
    made: dict[frozenset[str], nn.Module] = {}
    for phase in method.phases:
        updated = frozenset(method.updated(phase))
        if updated in made:
            continue
        made[updated] = losses = _Losses(method)
        if in_group:
            tensors = itertools.chain(losses.named_parameters(), losses.named_buffers())
            left_out = [name for name, _ in tensors if name.removeprefix(f"{_NETWORKS}.") not in updated]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(losses, left_out)
            made[updated] = DistributedDataParallel(losses, broadcast_buffers=False, gradient_as_bucket_view=True)
    return {phase.name: made[frozenset(method.updated(phase))] for phase in method.phases}


def synchronised(losses: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a backward pass: the workers of a group exchange gradients only in that of the last part of a batch."""
    waits = isinstance(losses, DistributedDataParallel) and not last
    return losses.no_sync() if waits else nullcontext()  # type: ignore[operator]


def parts(batch: Batch, count: int) -> Iterator[tuple[Batch, bool]]:
    """A batch in so many equal parts; with each, whether it is the last one."""
    if count == 1:
        yield batch, True
        return
    pieces: Mapping[str, tuple[Tensor, ...]] = {name: tensor.chunk(count) for name, tensor in batch.items()}
    for k in range(count):
        yield {name: tensors[k] for name, tensors in pieces.items()}, k == count - 1
