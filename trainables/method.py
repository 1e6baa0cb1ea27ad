"""What a trial trains, as the loop sees it.

A method builds networks from validated settings, says which parameters train in which phase, returns named loss terms
for a batch and restores a batch of images. It knows nothing of Ray, files, device lists or logging.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from trainables.settings import TrialSettings

Batch = Mapping[str, Tensor]


class LossTerm(NamedTuple):
    """A term of the loss: its raw batch mean, and the weight it enters the sum with."""

    value: Tensor
    weight: float


@dataclass(frozen=True)
class Phase:
    """One optimiser's turn in a step: the networks it updates. A GAN has two."""

    name: str
    networks: tuple[str, ...]


class Method(ABC):
    """A method, ready to train on one device.

    Attributes:
        networks: what trains, by name. Their weights make up the checkpoints; they are what EMA averages.
        phases: the optimisers' turns in a step, in order.
    """

    networks: nn.ModuleDict
    phases: ClassVar[tuple[Phase, ...]]

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device

    @staticmethod
    @abstractmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        """The columns of a training batch it reads, see `trainables.data.batches`."""

    @abstractmethod
    def losses(self, phase: Phase, batch: Batch) -> dict[str, LossTerm]:
        """The terms of one phase for a batch, each a mean over the batch. No two phases share a term's name."""

    @abstractmethod
    def restore(self, batch: Batch) -> Tensor:
        """Restored images (B, 3, H, W), nominally in [0, 1], of a validation batch; with the networks' current weights
        and the batch's own noise, so that equal weights restore equally."""
