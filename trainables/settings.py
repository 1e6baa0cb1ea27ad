"""Everything that determines a trial, typed and validated at the door.

A trial's settings are one frozen dataclass of sections. Space files, `--set` flags and Optuna's samples all address a
field by its dotted name (`sinsr.ground_truth`, `training.max_steps`); `override` is the only way in, so below it
nothing meets an unvalidated value. No torch here: reading and checking settings takes milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from trainables.data.degradation_settings import PairSettings
from trainables.errors import InputError
from trainables.registry import METHODS

SAMPLE, SHIPPED = "sample", "shipped"
T = typing.TypeVar("T")


@dataclass(frozen=True)
class DataSettings:
    """Where photographs come from.

    Attributes:
        source: "sample" (the photographs in scikit-image's wheel) or a folder.
        seed: chooses crops and degradations of the training pairs; equal for all trials of a sweep.
        verify: compare a prepared store's content hash before it is used, not only its size and schema.
    """

    source: str = SAMPLE
    seed: int = 0
    verify: bool = True


@dataclass(frozen=True)
class AutoencoderSettings:
    """The VQ-f4 autoencoder: "shipped", a .safetensors of ours, a diffusers folder, or the official .pth."""

    weights: str = SHIPPED

    @property
    def factor(self) -> int:
        """Image pixels for one latent pixel, along one side."""
        return 4


@dataclass(frozen=True)
class NetworkSettings:
    """The Swin-UNet of ResShift and SinSR, by the names of its official configuration. Defaults are the official size.

    `image_size` is in latent pixels: the size the network is trained at.
    """

    image_size: int = 64
    model_channels: int = 160
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)
    swin_depth: int = 2
    swin_embed_dim: int = 192
    num_head_channels: int = 32
    window_size: int = 8
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _require(self.model_channels % 32 == 0, "network.model_channels", self.model_channels, "a multiple of 32")
        _require(
            len(self.channel_mult) == len(self.num_res_blocks),
            "network.num_res_blocks",
            self.num_res_blocks,
            f"one number for each of the {len(self.channel_mult)} levels of network.channel_mult",
        )


@dataclass(frozen=True)
class DiffusionSettings:
    """ResShift's residual-shifting schedule (Yue et al. 2023); defaults as published for x4 super-resolution."""

    steps: int = 15
    power: float = 0.3
    min_noise_level: float = 0.04
    kappa: float = 2.0
    etas_end: float = 0.99

    def __post_init__(self) -> None:
        _require(self.steps >= 2, "diffusion.steps", self.steps, "2 or more")
        _require(self.power > 0, "diffusion.power", self.power, "a number above 0")
        _require(self.kappa > 0, "diffusion.kappa", self.kappa, "a number above 0")
        # At least three times what the schedule starts with, whatever min_noise_level is.
        _require(0.1 <= self.etas_end < 1, "diffusion.etas_end", self.etas_end, "a number in [0.1, 1)")
        _require(0 < self.min_noise_level < 1, "diffusion.min_noise_level", self.min_noise_level, "a number in (0, 1)")


@dataclass(frozen=True)
class TeacherSettings:
    """The ResShift teacher: "shipped", a .safetensors of ours or the official .pth, of the shape `network` says."""

    weights: str = SHIPPED


@dataclass(frozen=True)
class SinSRSettings:
    """The one-step student (Wang et al. 2024).

    Attributes:
        distillation, inversion, ground_truth: the weights of the three terms; the paper's are 1, 1, 1.
        teaching: "prepared" reads the teacher's targets from the store, made once for all trials; "online" runs
            autoencoder and teacher in every step, as the official code does.
        draws: noise draws for each pair. Prepared targets repeat after this many epochs over the pairs.
    """

    distillation: float = 1.0
    inversion: float = 1.0
    ground_truth: float = 1.0
    teaching: Literal["prepared", "online"] = "prepared"
    draws: int = 4

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            _require(math.isfinite(weight) and weight >= 0, f"sinsr.{name}", weight, "a weight of 0 or more")
        _require(
            any(self.weights.values()),
            "sinsr.distillation:inversion:ground_truth",
            ":".join(f"{weight:g}" for weight in self.weights.values()),
            "a ratio with at least one weight above 0",
        )
        _require(self.draws >= 1, "sinsr.draws", self.draws, "1 or more")

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("distillation", "inversion", "ground_truth")}


@dataclass(frozen=True)
class TrainingSettings:
    """The loop's settings, equal for all methods.

    Attributes:
        max_steps: optimiser steps.
        batch_size: pairs in one step over all workers and accumulated parts together.
        accumulate: parts a worker's batch is split into, to save memory.
        learning_rate: Adam's, at its peak; `warmup_steps` leads up to it linearly.
        schedule: what follows the warm-up.
        ema_decay: of the averaged weights, which are what is validated. Shorter runs average over less.
        precision: of the forward and backward passes; weights stay in float32.
        reports: validations over `max_steps`, at most; the last one is at the last step.
        log_every: steps between two rows of loss terms in TensorBoard.
        seed: fixes order, noise and initialisation.
    """

    max_steps: int = 500_000
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 5e-5
    warmup_steps: int = 5000
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip_gradient: float = 0.0
    ema_decay: float = 0.999
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    reports: int = 50
    log_every: int = 100
    validation_batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate", "reports", "log_every", "validation_batch"):
            _require(getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "1 or more")
        for name in ("warmup_steps", "weight_decay", "clip_gradient", "seed"):
            _require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "0 or more")
        positive = math.isfinite(self.learning_rate) and self.learning_rate > 0
        _require(positive, "training.learning_rate", self.learning_rate, "a number above 0")
        _require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "a number in [0, 1)")
        _require(
            self.batch_size % self.accumulate == 0,
            "training.accumulate",
            self.accumulate,
            f"a divisor of training.batch_size={self.batch_size}",
        )

    @property
    def report_every(self) -> int:
        """Steps between two reports; the last report is at `max_steps` whether or not this divides it."""
        return -(-self.max_steps // self.reports)


@dataclass(frozen=True)
class TrialSettings:
    """All that determines a trial."""

    method: str = "sinsr"
    data: DataSettings = field(default_factory=DataSettings)
    pairs: PairSettings = field(default_factory=PairSettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    sinsr: SinSRSettings = field(default_factory=SinSRSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        _require(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        latent = self.pairs.image_size // self.autoencoder.factor
        _require(
            self.network.image_size == latent,
            "network.image_size",
            self.network.image_size,
            f"{latent}, the latent size of pairs.image_size={self.pairs.image_size}",
        )
        _require(
            self.pairs.scale == self.autoencoder.factor,
            "pairs.scale",
            self.pairs.scale,
            f"{self.autoencoder.factor}: ResShift conditions on the degraded image at latent size",
        )


def _require(holds: bool, name: str, value: object, accepted: str) -> None:
    if not holds:
        raise InputError(f"{name}={value}: expected {accepted}")


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value for every leaf of a settings dataclass."""
    return dict(_leaves(settings, prefix))


def _leaves(settings: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def override(settings: T, changes: Mapping[str, Any]) -> T:
    """A copy of `settings` with dotted names replaced; strings are read as the field's type.

    All changes are applied together, so that fields that must agree can change in one call.

    Raises:
        InputError: an unknown name, a value of the wrong type or one that the settings refuse.
    """
    known = flatten(settings)
    for name in changes:
        if name not in known:
            raise InputError(f"{name}: no such setting; nearest: {', '.join(_nearest(name, known))}")
    return typing.cast("T", _replace(settings, changes, ""))


def _replace(settings: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(type(settings))
    values = {}
    for item in dataclasses.fields(settings):
        name, value = f"{prefix}{item.name}", getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            values[item.name] = _replace(value, changes, f"{name}.")
        elif name in changes:
            values[item.name] = _convert(name, changes[name], hints[item.name])
    return dataclasses.replace(settings, **values)


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`: strings are parsed, NumPy scalars become Python's, lossy conversions are refused."""
    origin = typing.get_origin(kind)
    try:
        if origin is Literal:
            for option in typing.get_args(kind):
                if value == option:
                    return option
            raise InputError(f"{name}={value}: expected one of {', '.join(map(str, typing.get_args(kind)))}")
        if origin is tuple:
            # Python writes a tuple of one as "(8,)".
            parts = value.strip("()[] ").removesuffix(",").split(",") if isinstance(value, str) else value
            elements = typing.get_args(kind)
            if len(elements) == 2 and elements[1] is Ellipsis:
                elements = (elements[0],) * len(parts)
            if len(parts) != len(elements):
                raise InputError(f"{name}={value}: expected {len(elements)} values, separated by commas")
            return tuple(_convert(name, part, element) for part, element in zip(parts, elements, strict=True))
        if origin in (types.UnionType, typing.Union):
            options = [option for option in typing.get_args(kind) if option is not type(None)]
            return None if value in (None, "none", "") else _convert(name, value, options[0])
        if kind is bool:
            return _as_bool(value)
        if kind is int:
            return _whole(value)
        if kind is float:
            return _finite(value)
        if kind is str and isinstance(value, str):
            return str(value)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
    raise InputError(f"{name}={value}: expected {_KINDS.get(kind, kind)}")


_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def _as_bool(value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ValueError(value)


def _whole(value: Any) -> int:
    if isinstance(value, str | Integral) and not isinstance(value, bool):
        return int(value)
    number = _finite(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _finite(value: Any) -> float:
    # NumPy's Booleans are no Real, Python's are.
    if not isinstance(value, str | Real) or isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _nearest(name: str, known: Mapping[str, Any]) -> list[str]:
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return close or sorted({f"{head}.*" if dot else head for head, dot, _ in (n.partition(".") for n in known)})
