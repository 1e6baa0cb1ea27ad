"""The interface of a method, as the training loop sees it.

A method builds networks from validated settings, names the parameters that train in each phase, returns named loss
terms for a batch and restores a batch of images. It does not use Ray, files, device lists or logging.
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
    """A term of the loss: its raw batch mean, and its weight in the sum.

    A computed weight stays on the device: reading it would make a GPU wait.
    """

    value: Tensor
    weight: float | Tensor


@dataclass(frozen=True)
class Phase:
    """One optimiser's part of a step: the networks that it updates, see also `Method.updated`. A GAN has two phases."""

    name: str
    networks: tuple[str, ...]


def trainable_parameters(module: nn.Module) -> tuple[int, int]:
    """(trained, all): numbers of parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


class Method(ABC):
    """A method, ready to train on one device.

    Attributes:
        networks: the trained networks, by name; they may contain frozen parameters, such as those of a UNet under its
            LoRA. Their trained parameters are saved in checkpoints and averaged by EMA.
        phases: the phases of a step, in order.
        adversaries: networks that only training needs; a finished trial does not contain them.
        size_multiple: sides of images must be multiples of it, in pixels.
        pretrained: whether training starts from finished weights, such as a teacher's or a base's, so that it is worth
            measuring before its first step.
    """

    networks: nn.ModuleDict
    phases: ClassVar[tuple[Phase, ...]]
    adversaries: ClassVar[tuple[str, ...]] = ()
    size_multiple: int
    pretrained: ClassVar[bool] = False

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        self.settings = settings
        self.device = device

    @staticmethod
    @abstractmethod
    def columns(settings: TrialSettings) -> frozenset[str]:
        """The columns that it reads from a training batch, see `trainables.data.batches`."""

    @staticmethod
    @abstractmethod
    def architecture(settings: TrialSettings) -> dict[str, Any]:
        """The settings that a weights file must match to be loaded, by dotted name, and fingerprints of the networks
        that its weights depend on. JSON types only.
        """

    @classmethod  # noqa: B027  # most methods refuse nothing
    def check(cls, settings: TrialSettings) -> None:
        """Refuses settings that do not fit together or do not fit the files they name, without reading weights.

        Called for every configuration that a sweep may try, before it starts.

        Raises:
            InputError: naming the setting.
        """

    @abstractmethod
    def losses(self, phase: Phase, batch: Batch, step: int) -> dict[str, LossTerm]:
        """The loss terms of one phase for a batch, each a mean over the batch; `step` counts from 0.

        Each term's name belongs to one phase. A phase without terms has not begun: its networks do not change. During
        the call only the parameters that the phase updates require gradients.
        """

    @abstractmethod
    def restore(self, batch: Batch) -> Tensor:
        """Restored images (B, 3, H, W), nominally in [0, 1], of a validation batch.

        Uses the networks' current weights and the batch's own noise, so equal weights give equal images.
        """

    def trained_state(self) -> dict[str, Tensor]:
        """The trained parameters and all buffers of `networks`, by name. A frozen base is not included; it is loaded
        from its own files.
        """
        frozen = {name for name, parameter in self.networks.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.networks.state_dict().items() if name not in frozen}

    def result(self) -> dict[str, Tensor]:
        """The part of `trained_state` that restores: all but the adversaries."""
        adversaries = tuple(f"{name}." for name in self.adversaries)
        return {name: tensor for name, tensor in self.trained_state().items() if not name.startswith(adversaries)}

    def load(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Loads `state`, which must have the names and shapes of `own`: the present `trained_state` or `result`.

        Raises:
            ValueError: tensors are missing, unexpected or of other shapes; the message names the first.
        """
        if unequal := sorted(own.keys() ^ state.keys()):
            raise ValueError(f"{len(unequal)} tensors are missing or unexpected, the first is {unequal[0]}")
        if unequal := sorted(name for name in own if own[name].shape != state[name].shape):
            name = unequal[0]
            raise ValueError(f"{name} is {tuple(state[name].shape)} in the file; expected {tuple(own[name].shape)}")
        self.networks.load_state_dict(state, strict=False)

    def load_public(self, path: Path) -> None:
        """Loads a checkpoint of the method's public implementation, strictly, to start from.

        A file of another kind raises the error of its reader.

        Raises:
            InputError: the method has no public checkpoint in a single file.
        """
        raise InputError(
            f"checkpoint={path}: {self.settings.method} has no public single-file checkpoint; expected a finished "
            "trial, such as a run's best/"
        )

    @property
    def parameters(self) -> tuple[int, int]:
        """(trained, all): numbers of parameters in `networks`."""
        return trainable_parameters(self.networks)

    @property
    def resident_bytes(self) -> int:
        """Memory of the method's networks, in bytes: `networks` and the frozen ones."""
        held = nn.ModuleList(self.parts)
        return sum(tensor.nbytes for tensor in itertools.chain(held.parameters(), held.buffers()))

    @property
    def parts(self) -> list[nn.Module]:
        """`networks`, and the frozen networks that the method holds besides."""
        return [part for part in vars(self).values() if isinstance(part, nn.Module)]

    @property
    def named_parts(self) -> dict[str, nn.Module]:
        """Name -> each of `networks`, and each network that the method holds besides."""
        others = {name: part for name, part in vars(self).items() if isinstance(part, nn.Module) and name != "networks"}
        return {**dict(self.networks.items()), **others}

    def updated(self, phase: Phase) -> dict[str, nn.Parameter]:
        """The parameters that a phase updates, by name: all trained ones of its networks; a method may return fewer."""
        return {
            f"{network}.{name}": parameter
            for network in phase.networks
            for name, parameter in self.networks[network].named_parameters()
            if parameter.requires_grad
        }

    @contextmanager
    def only(self, phase: Phase) -> Iterator[None]:
        """Inside, only the parameters that the phase updates require gradients, so that no others are computed."""
        updated = self.updated(phase)
        others = [
            parameter
            for name, parameter in self.networks.named_parameters()
            if parameter.requires_grad and name not in updated
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
