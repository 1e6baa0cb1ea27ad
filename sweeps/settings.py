"""What a sweep is told: the command line as a typed record, checked as far as that needs nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import search_spaces
from search_spaces import SearchSpace
from trainables.errors import InputError
from trainables.metrics.names import METRICS
from trainables.presets import preset
from trainables.registry import METHODS
from trainables.settings import SAMPLE, SHIPPED, TrialSettings, flatten, override

Perceptual = Literal["auto", "lpips", "st_lpips", "none"]
BASE_METRICS = ("val/psnr", "val/psnr_y", "val/ssim")
INTERRUPTED = 130
"""Exit status of a sweep that was interrupted, as a shell's for SIGINT."""


@dataclass(frozen=True)
class SweepSettings:
    """One flag a field; see `python run_sweep.py --help`."""

    space: str
    preset: str = "sample"
    objective: str = ""
    trials: int = 0
    max_steps: int = 0
    reduction_factor: float = 3.0
    workers_per_trial: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    max_concurrent: int = 0
    seed: int = 0
    results: str = "results"
    store: str = ""
    data: str = ""
    perceptual: Perceptual = "auto"
    address: str = ""
    set: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("max_steps", 1), ("max_concurrent", 1), ("workers_per_trial", 1)):
            value = getattr(self, name)
            if value < least and value != type(self).__dataclass_fields__[name].default:
                raise InputError(f"--{_flag(name)} {value}: expected {least} or more")
        for name, bound in (("cpus_per_worker", 0), ("reduction_factor", 1)):
            if not bound < getattr(self, name) < math.inf:
                raise InputError(f"--{_flag(name)} {getattr(self, name):g}: expected a number above {bound}")
        if not 0 <= self.gpus_per_worker < math.inf:
            raise InputError(f"--gpus-per-worker {self.gpus_per_worker:g}: expected 0 or more")
        for name in ("results", "store", "data"):
            if "://" in getattr(self, name):
                raise InputError(f"--{name} {getattr(self, name)}: expected a local or shared folder, no bucket yet")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed {self.seed}: expected a whole number from 0 to {2**31 - 1}")


@dataclass(frozen=True)
class Question:
    """A sweep's settings resolved against its space and preset.

    Attributes:
        trial: what every trial starts from; a trial changes the space's parameters and the seed.
        trials: how many trials run in all, the space's points among them.
    """

    settings: SweepSettings
    space: SearchSpace
    trial: TrialSettings
    trials: int


def resolve(settings: SweepSettings) -> Question:
    """Looks up the space and the preset and applies every override, in the order preset, space, flags.

    Raises:
        InputError: an unknown name, or a value that is not accepted.
    """
    try:
        space = search_spaces.load(settings.space)
    except KeyError as error:
        raise InputError(f"--space {settings.space}: {error.args[0]}") from None
    chosen = preset(settings.preset)
    changes: dict[str, object] = {**space.fixed, "method": space.method}
    if space.method not in METHODS:
        raise InputError(f"space {space.name}: no method {space.method!r}; the methods are {', '.join(METHODS)}")
    if settings.data:
        changes["data.source"] = settings.data
    if settings.max_steps:
        changes["training.max_steps"] = settings.max_steps
    for name, value in settings.set:
        if name in space.parameters:
            raise InputError(f"--set {name}={value}: the space {space.name} searches over it; it cannot be set")
        changes[name] = value
    changes.setdefault("training.seed", settings.seed)
    changes |= _absolute_paths(flatten(chosen.trial) | changes)
    try:
        trial = override(chosen.trial, changes)
    except InputError as error:
        set_by_flag = any(str(error).startswith(name) for name, _ in settings.set)
        raise InputError(f"--set {error}" if set_by_flag else str(error)) from None
    for name, what in chosen.needs:
        if not changes.get(name):
            raise InputError(f"--preset {settings.preset}: needs {what}")
    for point in space.points:
        override(trial, point.values)
    _check_shares(settings.workers_per_trial, trial)
    _metric_of(settings)
    trials = settings.trials or max(chosen.trials, len(space.queue))
    return Question(settings, space, trial, trials)


def _absolute_paths(values: Mapping[str, object]) -> dict[str, object]:
    """Paths as every process of the sweep and every later `--resume` will find them, wherever it runs."""
    named = {"data.source": SAMPLE, "autoencoder.weights": SHIPPED, "teacher.weights": SHIPPED}
    return {
        name: str(Path(str(values[name])).expanduser().absolute())
        for name, builtin in named.items()
        if values[name] not in (builtin, "")
    }


def _check_shares(workers: int, trial: TrialSettings) -> None:
    """Every worker takes the same number of pairs of a batch, in parts of the same size."""
    batch, accumulate = trial.training.batch_size, trial.training.accumulate
    if batch % (workers * accumulate):
        raise InputError(
            f"--workers-per-trial {workers}: training.batch_size={batch} cannot be shared equally; "
            f"expected a multiple of {workers * accumulate} (workers x training.accumulate)"
        )


def _metric_of(settings: SweepSettings) -> str:
    """`--objective` as a metric's full name, or as it is where it means no one metric."""
    wanted = settings.objective
    name = wanted if wanted.startswith("val/") else f"val/{wanted}"
    if wanted in ("", "perceptual"):
        return wanted
    if name not in METRICS:
        short = ", ".join(metric.removeprefix("val/") for metric in METRICS)
        raise InputError(f"--objective {wanted}: no such metric; expected perceptual, {short}")
    return name


def resolve_objective(settings: SweepSettings, space: SearchSpace, perceptual: tuple[str, ...]) -> str:
    """The full name of the metric to search by.

    Args:
        perceptual: names of the perceptual metrics this sweep reports.

    Raises:
        InputError: no such metric, or one that this sweep does not report.
    """
    name = _metric_of(settings) or space.objective
    reported = (*BASE_METRICS, *perceptual)
    if name == "perceptual":
        # Without a perceptual metric the space's own wish cannot be had; a wish of the user's must not be bent.
        if not perceptual and settings.objective:
            raise InputError("--objective perceptual: this sweep reports no perceptual metric, see --perceptual")
        return perceptual[0] if perceptual else "val/psnr"
    if name not in reported:
        raise InputError(f"--objective {name}: this sweep reports {', '.join(reported)}; see --perceptual")
    return name


def _flag(name: str) -> str:
    return name.replace("_", "-")


def flags(settings: SweepSettings) -> list[str]:
    """The command line that says the same, without what is default."""
    line: list[str] = []
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if item.name == "set":
            line += [part for name, text in value for part in ("--set", f"{name}={text}")]
        elif value != item.default:
            line += [f"--{_flag(item.name)}", str(value)]
    return line
