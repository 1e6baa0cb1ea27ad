"""Exponential moving averages of weights; validation and the final weights use the averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Averages the trainable parameters of `networks` and their floating-point buffers.

    The buffers are averaged because the statistics of a batch normalisation belong to the weights under which they were
    collected. The rest of the state is not averaged.

    With `warmup`, the decay grows from 0.1 towards `decay` over the first steps, (1 + n) / (10 + n), so that the
    initial weights have little influence in a short run. Without, it is constant, as in the official code of SinSR.
    A decay of 0 keeps no averages: inside `applied` are the raw weights.
    """

    def __init__(self, networks: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        trained = {name: parameter for name, parameter in networks.named_parameters() if parameter.requires_grad}
        gathered = {name: buffer for name, buffer in networks.named_buffers() if buffer.is_floating_point()}
        self._followed: dict[str, Tensor] = {**trained, **gathered} if decay else {}
        self._averages = {name: tensor.detach().clone() for name, tensor in self._followed.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        if self._averages:
            torch._foreach_lerp_(list(self._averages.values()), list(self._followed.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the networks have the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._followed.items():
            tensor.data, self._averages[name] = self._averages[name], tensor.data

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, int | dict[str, Tensor]]) -> None:
        self.updates = int(state["updates"])  # type: ignore[arg-type]
        averages: dict[str, Tensor] = state["averages"]  # type: ignore[assignment]
        for name, average in self._averages.items():
            average.copy_(averages[name])
