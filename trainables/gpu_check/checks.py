"""The checks of one method on one device: precision by precision, with and without compiled networks."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from trainables.common.errors import one_line
from trainables.data.batches import TrainingBatches, validation_batches
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.data.stages.kinds import STAGE_OF
from trainables.gpu_check.trials import Kept, Losses, check_settings, make_trainer
from trainables.images.tensors import to_pixels
from trainables.methods.build import method_class
from trainables.restorer import Restorer, picture_key, restoration_settings
from trainables.settings import TrialSettings, override
from trainables.training.memory import free_memory

CPU = torch.device("cpu")

FIRST = {"fp32": 0.005, "fp16": 0.01, "bf16": 0.02}
"""Largest difference of a loss in the first step, relative to its value on the CPU in fp32. A GPU convolves in
TensorFloat-32 by default. Its 10 bits, as those of fp16, round by 0.05 %, those of bf16 by 0.4 %; networks add up some
of that, and losses are means."""
_GAME = "loss/adversarial"
"""A mean of logits around 0, which follows the discriminator: compared in the first step only."""
FLOOR = 2e-3
"""Added to the value: a term near 0 has only its rounding."""
LATER = {"fp32": 0.1, "fp16": 0.25, "bf16": 0.25}
"""Largest difference of a loss's mean over all steps. Adam turns the rounding of a small gradient into a whole step;
in fp16 the first steps are left out until the loss scale is low enough."""
LEVELS = {"fp32": 1.0, "fp16": 2.0, "bf16": 4.0}
"""Largest mean difference of a restored picture from what the CPU restores with the same weights in fp32, of 255."""
LEFT_BYTES = 2**20
"""What may be left of a trial."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: of the method, or the kind of check.
        mode: precision, and "compiled" if the networks are.
        failure: why it failed; empty if it did not.
        seconds: that it took. step: seconds of a training step, without compiling.
        loss: largest difference of a loss in the first step, see `FIRST`. levels: of the picture, see `LEVELS`.
        peak: bytes of tensors in training; 0 on a CPU.
    """

    name: str
    mode: str
    failure: str = ""
    seconds: float = 0.0
    step: float = 0.0
    loss: float = 0.0
    levels: float = 0.0
    peak: int = 0

    def __str__(self) -> str:
        head = f"{self.name:21}{self.mode:15}"
        if self.failure:
            return f"{head}FAILS: {self.failure}"
        peak = f"  peak {self.peak / 1e9:.2f} GB" if self.peak else ""
        step = f"  step {1000 * self.step:.0f} ms" if self.step else ""
        shown = f"  losses {self.loss:.2%}  picture {self.levels:.2f}"
        return f"{head}ok{self.seconds:8.1f} s{step}{shown}{peak}"


class CheckFailed(Exception):
    """The message says what was expected."""


@dataclass(frozen=True)
class Setting:
    """What all checks of a run share.

    Attributes:
        modes: (precision, whether the networks are compiled), in order.
    """

    device: str
    steps: int
    modes: Sequence[tuple[str, bool]]
    preset: str = "sample"


def check_method(method: str, given: Setting, folder: Path) -> Iterator[CheckResult]:
    """All checks of one method, each as it ends.

    Args:
        folder: an empty one, for prepared data and checkpoints.
    """
    settings, device = check_settings(method, given.steps, given.preset), torch.device(given.device)
    prepared = prepare(settings, folder / "store", method_class(method).columns(settings), device)
    expected = reference(settings, prepared)
    yield checked(method, "batches", lambda: check_batches(settings, prepared, device))
    before = used_bytes(device)
    for precision, compiled in given.modes:
        mode = f"{precision} compiled" if compiled else precision
        changed = override(settings, {"training.precision": precision, "training.compile": compiled})
        place = folder / mode.replace(" ", "-")

        def work(changed: TrialSettings = changed, place: Path = place, mode: str = mode) -> CheckResult:
            return replace(_check_trial(changed, prepared, expected, device, place), name=method, mode=mode)

        row = checked(method, mode, work)
        left = used_bytes(device) - before
        if not row.failure and left > LEFT_BYTES:
            row = replace(row, failure=f"{left / 1e6:.1f} MB of tensors are left after the trial")
        before += max(0, left)  # so that a leak is blamed on its own trial
        yield row


def check_together(method: str, given: Setting, folder: Path, together: Barrier) -> Iterator[CheckResult]:
    """A trial that has half of the device, while another process has the other half."""
    settings, device = check_settings(method, given.steps, given.preset), torch.device(given.device)
    prepared = prepare(settings, folder / "store", method_class(method).columns(settings), device)
    expected = reference(settings, prepared)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.5, device)
    together.wait(600)  # so that both train at once

    def work() -> CheckResult:
        return _check_trial(settings, prepared, expected, device, folder / "trial")

    yield replace(checked(method, "", work), name=method, mode="half a device")


def checked(name: str, mode: str, work: Callable[[], CheckResult | None]) -> CheckResult:
    """The row of a check; with the reason if it raises."""
    started = time.monotonic()
    try:
        row = work() or CheckResult(name, mode)
    except CheckFailed as error:
        row = CheckResult(name, mode, str(error))
    except Exception as error:  # PyTorch, Triton and the compiler raise their own
        row = CheckResult(name, mode, f"{type(error).__name__}: {one_line(error)[:300]}")
    return replace(row, seconds=time.monotonic() - started)


def reference(settings: TrialSettings, prepared: Prepared) -> Losses:
    """The losses of all steps, on the CPU in fp32."""
    trainer, kept = make_trainer(settings, prepared, CPU), Kept()
    trainer.run(kept)
    return kept.losses


def check_batches(settings: TrialSettings, prepared: Prepared, device: torch.device) -> None:
    """The device's own batches have the stored values of the CPU's."""
    columns = method_class(settings.method).columns(settings)
    here, there = (TrainingBatches(prepared, settings, columns, on)(1) for on in (CPU, device))
    for name, values in there.items():
        require(values.device.type == device.type, f"column {name} is on {values.device}")
        require(bool(values.isfinite().all()), f"column {name} is not finite")
        same = name not in STAGE_OF or torch.equal(values.cpu(), here[name])
        require(same, f"column {name} differs from the CPU's")


def _check_trial(
    settings: TrialSettings, prepared: Prepared, expected: Losses, device: torch.device, folder: Path
) -> CheckResult:
    """Trains with validations and checkpoints, continues from the one in the middle, restores a picture."""
    precision = settings.training.precision
    try:
        whole = _train(settings, prepared, device, folder / "whole")
        loss = compare_losses(whole.losses, expected, precision)
        middle = whole.reports[0].step
        continued = _train(settings, prepared, device, folder / "continued", whole.checkpoints[0])
        _compare_continued(continued.losses, whole.losses[middle:])
        levels = _compare_pictures(whole.checkpoints[-1], prepared, device, precision)
        last = whole.reports[-1].metrics
        peak = int(last["memory/peak_gb"] * 1e9) if device.type == "cuda" else 0
        return CheckResult("", "", step=last["train/step_seconds"], loss=loss, levels=levels, peak=peak)
    finally:
        free_memory()


def _train(
    settings: TrialSettings, prepared: Prepared, device: torch.device, folder: Path, start: Path | None = None
) -> Kept:
    trainer, kept = make_trainer(settings, prepared, device), Kept(folder)
    if start is not None:
        trainer.load(start)
    trainer.run(kept)
    return kept


def compare_losses(found: Losses, expected: Losses, precision: str) -> float:
    """The largest difference in the first step.

    Raises:
        CheckFailed: terms, or values that differ too much.
    """
    terms = sorted({term for row in expected for term in row})
    ours = sorted({term for row in found for term in row})
    require(ours == terms, f"terms {', '.join(ours)}; on the CPU {', '.join(terms)}")
    first = {term: _difference(found[0][term], expected[0][term]) for term in expected[0]}
    worst = max(first, key=lambda term: first[term])
    require(
        first[worst] <= FIRST[precision],
        f"{worst} of the first step is {found[0][worst]:.5g}, on the CPU in fp32 {expected[0][worst]:.5g}",
    )
    for term in (term for term in terms if term != _GAME):
        mean, wanted = (float(np.mean([row[term] for row in rows if term in row])) for rows in (found, expected))
        text = f"{term} is {mean:.5g} over {len(found)} steps, on the CPU in fp32 {wanted:.5g}"
        require(_difference(mean, wanted) <= LATER[precision], text)
    return first[worst]


def _compare_continued(found: Losses, expected: Losses) -> None:
    """The first step after a checkpoint has the weights of the checkpoint, so that only the order of sums differs: a
    GPU adds in another order each time.
    """
    require(len(found) == len(expected), f"{len(found)} steps after the checkpoint, expected {len(expected)}")
    for term, value in expected[0].items():
        text = f"{term} of the first step after the checkpoint is {found[0][term]:.5g}, without it {value:.5g}"
        require(_difference(found[0][term], value) <= FIRST["bf16"], text)


def _compare_pictures(checkpoint: Path, prepared: Prepared, device: torch.device, precision: str) -> float:
    """The mean difference of a restored picture from the CPU's in fp32, of 255 levels."""
    degraded = next(validation_batches(prepared, 1, CPU))["degraded"][0]
    pixels = to_pixels(degraded * 0.5 + 0.5)
    settings, key = restoration_settings(checkpoint), picture_key(0, "picture", pixels)
    plain = override(settings, {"training.precision": "fp32"})
    ours, theirs = (Restorer(s, on)(pixels, key).astype(np.float32) for s, on in ((settings, device), (plain, CPU)))
    require(ours.std() > 1, "the restored picture is of one colour")
    levels = float(np.abs(ours - theirs).mean())
    require(levels <= LEVELS[precision], f"the restored picture differs by {levels:.1f} levels from the CPU's")
    return levels


def used_bytes(device: torch.device) -> int:
    """Bytes of all tensors on a device. On a CPU, of those that Python knows."""
    free_memory()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        # Workspaces of matrix products stay, one per thread and stream; the allocator counts them too.
        torch._C._cuda_clearCublasWorkspaces()
        return int(torch.cuda.memory_allocated(device))
    found: dict[int, int] = {}
    for one in gc.get_objects():
        if not issubclass(type(one), Tensor) or isinstance(one, FakeTensor):  # the compiler keeps some, without memory
            continue
        if one.device.type == device.type and one.layout == torch.strided:
            storage: Any = one.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return sum(found.values())


def require(holds: bool, text: str) -> None:
    """Raises CheckFailed with the text if it does not hold."""
    if not holds:
        raise CheckFailed(text)


def _difference(found: float, expected: float) -> float:
    return abs(found - expected) / (abs(expected) + FLOOR)
