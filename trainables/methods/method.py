"""What a trial trains, as the loop sees it.

A method builds networks from validated settings, says which parameters train in which phase, returns named loss terms
for a batch and restores a batch of images. It knows nothing of Ray, files, device lists or logging.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from trainables.common.errors import InputError
from trainables.settings import TrialSettings

Batch = Mapping[str, Tensor]


class LossTerm(NamedTuple):
    """A term of the loss: its raw batch mean, and the weight it enters the sum with. A weight that is computed stays
    on the device: looking at it would make a GPU wait."""

    value: Tensor
    weight: float | Tensor


@dataclass(frozen=True)
class Phase:
    """One optimiser's turn in a step: the networks it updates. A GAN has two."""

    name: str
    networks: tuple[str, ...]


def trainable_parameters(module: nn.Module) -> tuple[int, int]:
    """(trained, all) parameters, counted."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


class Method(ABC):
    """A method, ready to train on one device.

    Attributes:
        networks: what trains, by name; frozen parameters may lie among them, as those of a UNet under its LoRA. Their
            trained parameters make up the checkpoints; they are what EMA averages.
        phases: the optimisers' turns in a step, in order.
        adversaries: networks that only training needs; a finished trial leaves them out.
        size_multiple: sides of images must be multiples of it, in pixels.
    """

    networks: nn.ModuleDict
    phases: ClassVar[tuple[Phase, ...]]
    adversaries: ClassVar[tuple[str, ...]] = ()
    size_multiple: int

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device

    @staticmethod
    @abstractmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        """The columns of a training batch it reads, see `trainables.data.batches`."""

    @staticmethod
    @abstractmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        """What a file of its weights must have been made with to be loaded: dotted setting names and values, and
        fingerprints of what the weights sit in. JSON's types."""

    @classmethod  # noqa: B027  # most have nothing to refuse
    def check(cls, settings: TrialSettings) -> None:
        """Refuses settings that do not go together or with the files they name, as far as that shows without reading
        weights; for every configuration that a sweep may come to, before it starts.

        Raises:
            InputError: naming the setting.
        """

    @abstractmethod
    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        """The terms of one phase for a batch, each a mean over the batch; `step` counts from 0. No two phases share a
        term's name. A phase without terms has not begun: its networks stay as they are. While this runs, only
        parameters of the phase's networks require gradients."""

    @abstractmethod
    def restore(self, batch: Batch) -> Tensor:
        """Restored images (B, 3, H, W), nominally in [0, 1], of a validation batch; with the networks' current weights
        and the batch's own noise, so that equal weights restore equally."""

    def trained_state(self) -> dict[str, Tensor]:
        """The trained parameters and all buffers of `networks`, by name. A frozen base is not among them: it is loaded
        from where it came from."""
        frozen = {name for name, parameter in self.networks.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.networks.state_dict().items() if name not in frozen}

    def result(self) -> dict[str, Tensor]:
        """Of `trained_state` what restores: all but the adversaries."""
        adversaries = tuple(f"{name}." for name in self.adversaries)
        return {name: tensor for name, tensor in self.trained_state().items() if not name.startswith(adversaries)}

    def load(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Takes over `state`, which must be like `own`: the present `trained_state` or `result`.

        Raises:
            ValueError: tensors are missing, unexpected or of other shapes; the message names the first.
        """
        if unequal := sorted(own.keys() ^ state.keys()):
            raise ValueError(f"{len(unequal)} tensors are missing or unexpected, the first is {unequal[0]}")
        if unequal := sorted(name for name in own if own[name].shape != state[name].shape):
            name = unequal[0]
            raise ValueError(f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} here")
        self.networks.load_state_dict(state, strict=False)

    def load_public(self, path: Path) -> None:
        """Takes over a checkpoint of the method's public implementation, strictly, to start from. A file that is none
        raises whatever its readers do.

        Raises:
            InputError: the method has none that is a single file.
        """
        raise InputError(
            f"checkpoint={path}: {self.settings.method} has no public single-file checkpoint; expected a finished "
            "trial, such as a run's best/"
        )

    @property
    def parameters(self) -> tuple[int, int]:
        """How many parameters train, and how many `networks` have in all."""
        return trainable_parameters(self.networks)

    @property
    def resident_bytes(self) -> int:
        """What the method's networks take in memory: those of `networks`, and the frozen ones beside them."""
        held = nn.ModuleList(part for part in vars(self).values() if isinstance(part, nn.Module))
        return sum(tensor.nbytes for tensor in itertools.chain(held.parameters(), held.buffers()))

    @contextmanager
    def only(self, phase: Phase) -> Iterator[None]:
        """Within it no parameter outside the phase's networks requires gradients: what an adversary's loss would leave
        in the other network is never computed."""
        others = [
            parameter
            for name, network in self.networks.items()
            if name not in phase.networks
            for parameter in network.parameters()
            if parameter.requires_grad
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
