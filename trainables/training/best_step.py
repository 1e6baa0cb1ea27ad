"""The step that a trial keeps with `training.keep=best`: the one with the best objective on the validation images.

Its averaged weights stay in memory while the trial trains on. Every checkpoint holds them and their validation in place
of those of its own step, so a checkpoint needs no other one and takes as much room as without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from trainables.methods.build import weights_prefix
from trainables.methods.method import Method
from trainables.pretrained.finished_trial import WEIGHTS
from trainables.pretrained.weights_file import read_safetensors
from trainables.training.measurements import KeptBy, Validation
from trainables.training.pictures import PICTURES, Pictures


@dataclass(frozen=True)
class BestStep:
    """The best step so far. Of equal ones it is the first.

    Attributes:
        step: finished optimiser steps; 0 for what the trial started from.
        value: its objective.
        weights: the averaged weights that restore, by name, on the CPU.
        validation: its validation.
    """

    step: int
    value: float
    weights: Mapping[str, Tensor]
    validation: Validation

    def is_beaten_by(self, value: float, objective: KeptBy) -> bool:
        return value > self.value if objective.larger else value < self.value

    @contextmanager
    def applied(self, method: Method) -> Iterator[None]:
        """Inside, the networks have these weights."""
        own = {name: tensor.detach().clone() for name, tensor in method.result().items()}
        method.load(self.weights, own)
        try:
            yield
        finally:
            method.load(own, own)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint's state holds of it; the rest is in other files of the checkpoint."""
        return {"step": self.step, "value": self.value}

    @classmethod
    def read(cls, folder: Path, state: Mapping[str, Any], method: Method) -> BestStep:
        """The best step in a checkpoint.

        Raises:
            OSError, ValueError: a file of the checkpoint cannot be read.
        """
        prefix = weights_prefix(method)
        weights = {f"{prefix}{name}": tensor for name, tensor in read_safetensors(folder / WEIGHTS).items()}
        pictures = Pictures.read(folder / PICTURES["validation"])
        return cls(state["step"], state["value"], weights, replace(Validation.read(folder), pictures=pictures))


def averaged_weights(method: Method) -> dict[str, Tensor]:
    """A copy of the present weights that restore, on the CPU. Call it where the averages are applied."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in method.result().items()}
