"""A long training that survives its process: run the same command again and it continues from its last checkpoint."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

DECAY_FROM = 0.6  # share of the steps after which the learning rate falls
WARMUP = 100  # steps


class Stateful(Protocol):
    """Modules, optimisers, averages."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up, constant, then a straight fall to 1 %.

    The constant stretch makes runs extensible: a run that is stopped before `DECAY_FROM` continues with more steps as
    if they had been planned from the start.
    """
    fall = (step - DECAY_FROM * steps) / ((1 - DECAY_FROM) * steps)
    return min(1.0, (step + 1) / WARMUP) * (1.0 - 0.99 * min(1.0, max(0.0, fall)))


@dataclass(frozen=True)
class Resumable:
    """One training: its checkpoint `NAME.pt`, its curve `NAME.jsonl`, and `NAME.stable.pt` from before the rate falls.

    Attributes:
        folder: where those three files are. name: of the training.
        steps: optimiser steps in all.
        parts: everything that a checkpoint holds.
        checkpoint_seconds: at most so long between two checkpoints.
        log_every, measure_every: steps between two lines of loss terms, and between two measurements.
    """

    folder: Path
    name: str
    steps: int
    parts: Mapping[str, Stateful]
    checkpoint_seconds: float = 300.0
    log_every: int = 100
    measure_every: int = 1000

    def run(
        self,
        train_step: Callable[[int], Mapping[str, float]],
        measure: Callable[[int], Mapping[str, float]],
        log: Callable[[str], None] = print,
    ) -> None:
        """Calls `train_step(step)`, which returns loss terms, for every step that is left.

        A step may draw random numbers only from generators that it seeds with its number; then a resumed run draws
        what an uninterrupted one would have drawn.
        """
        step, spent = self._load(log)
        sums: dict[str, float] = {}
        counted = 0
        started = saved = shown = time.monotonic()
        while step < self.steps:
            if step == math.ceil(DECAY_FROM * self.steps):
                self._save(step, spent + time.monotonic() - started, ".stable.pt")
            for name, value in train_step(step).items():
                sums[name] = sums.get(name, 0.0) + value
            step, counted = step + 1, counted + 1
            if step % self.log_every == 0 or step == self.steps:
                now = time.monotonic()
                seconds = (now - shown) / counted
                means = {name: round(total / counted, 5) for name, total in sums.items()}
                self._note(
                    {"step": step, "spent_s": round(spent + now - started), "s_per_step": round(seconds, 3), **means}
                )
                left = (self.steps - step) * seconds / 60
                terms = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
                log(f"{self.name} {step}/{self.steps}: {terms}; {seconds:.2f} s a step, {left:.0f} min left")
                sums, counted, shown = {}, 0, now
            if step % self.measure_every == 0 or step == self.steps:
                measured = {name: round(value, 5) for name, value in measure(step).items()}
                self._note({"step": step, "measured": measured})
                log(f"{self.name} {step}/{self.steps}, held out: {measured}")
            if time.monotonic() - saved > self.checkpoint_seconds or step == self.steps:
                saved = time.monotonic()
                self._save(step, spent + saved - started)

    def _load(self, log: Callable[[str], None]) -> tuple[int, float]:
        path = self.folder / f"{self.name}.pt"
        if not path.is_file():
            return 0, 0.0
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        log(f"{self.name}: continuing at step {state['step']} of {self.steps}")
        return int(state["step"]), float(state["spent"])

    def _save(self, step: int, spent: float, suffix: str = ".pt") -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        path = self.folder / f"{self.name}{suffix}"
        partial = path.with_suffix(".partial")
        torch.save({"step": step, "spent": spent, **state}, partial)
        os.replace(partial, path)

    def _note(self, facts: Mapping[str, Any]) -> None:
        with (self.folder / f"{self.name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
