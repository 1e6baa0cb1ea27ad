"""The prompts that condition a base's UNet: its empty prompt, or those of a file that `trainables.prompts` writes.

A file has up to three tensors of one shape, (1, tokens, dim): `positive`, `negative` and `empty`. So training needs no
text encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.common.errors import InputError, one_line
from trainables.pretrained.base_model import EMPTY_PROMPT, find_base, read_shape
from trainables.pretrained.fetched import weights_at
from trainables.pretrained.prompt_encoder import load_empty_prompt
from trainables.settings import TrialSettings
from trainables.settings.checks import require

if TYPE_CHECKING:
    from torch import Tensor

POSITIVE, NEGATIVE, EMPTY = NAMES = ("positive", "negative", "empty")
_EXPECTED = (
    f"a .safetensors file with {POSITIVE} or {NEGATIVE} and perhaps {EMPTY}, written by python -m trainables.prompts"
)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a trial, each (1, tokens, dim) float32.

    Attributes:
        positive: conditions the UNet; the base's empty prompt if the file has none.
        negative: prompt that guidance leads away from; the empty one if the file has none.
        empty: takes the place of `positive` where a sample's prompt is dropped.
    """

    positive: Tensor
    negative: Tensor
    empty: Tensor


def load_prompts(settings: TrialSettings) -> Prompts:
    """The prompts of `base.prompts`; without it, three times the empty prompt of the base.

    Raises:
        InputError: the file or the base's empty prompt cannot be read or does not fit the base.
    """
    given = _read(settings)
    if given.keys() == set(NAMES):
        return Prompts(**given)
    folder = find_base(settings.base.weights, settings.base.revision)
    base = load_empty_prompt(folder, settings.base.padded_prompt)
    empty = given.get(EMPTY, base)
    return Prompts(given.get(POSITIVE, base), given.get(NEGATIVE, empty), empty)


def is_computed(settings: TrialSettings) -> bool:
    """Whether the positive prompt is computed by the base's text encoder, and not read from a file."""
    folder = find_base(settings.base.weights, settings.base.revision)
    return POSITIVE not in _read(settings) and not (folder / EMPTY_PROMPT).is_file()


def pads_prompt(settings: TrialSettings) -> bool:
    """Whether `base.padded_prompt` has an effect: the trial uses an empty prompt that a text encoder computes."""
    folder = find_base(settings.base.weights, settings.base.revision)
    return not (_read(settings).keys() >= {POSITIVE, EMPTY} or (folder / EMPTY_PROMPT).is_file())


def check_prompts(settings: TrialSettings) -> None:
    """Refuses a file of prompts that does not fit the base, and settings that need another one.

    Raises:
        InputError: naming the setting.
    """
    given, base = _read(settings), settings.base
    if base.prompt_dropout and settings.training.max_steps:
        both = f"0, or base.prompts=FILE with {POSITIVE} and {EMPTY}"
        require(given.keys() >= {POSITIVE, EMPTY}, "base.prompt_dropout", base.prompt_dropout, both)


def require_prompts(settings: TrialSettings, name: str, value: float, off: float) -> None:
    """Refuses a value other than `off` of a setting that has no effect without `base.prompts`.

    Raises:
        InputError: naming the setting.
    """
    accepted = f"{off:g} without base.prompts=FILE, the prompts that it compares"
    require(value == off or bool(settings.base.prompts), name, value, accepted)


def _read(settings: TrialSettings) -> dict[str, Tensor]:
    if not settings.base.prompts:
        return {}
    from safetensors.torch import load_file

    name = f"base.prompts={settings.base.prompts}"
    path = weights_at("base.prompts", settings.base.prompts)
    if not path.is_file():
        raise InputError(f"{name}: no such file; expected {_EXPECTED}")
    try:
        found = {key: values.float() for key, values in load_file(path).items()}
    except Exception as error:  # the reader raises many types for a file that is not one
        raise InputError(f"{name}: cannot be read ({one_line(error)}); expected {_EXPECTED}") from None
    if unknown := sorted(found.keys() - set(NAMES)):
        raise InputError(f"{name}: has a tensor {unknown[0]!r}; expected {_EXPECTED}")
    if not found.keys() & {POSITIVE, NEGATIVE}:
        raise InputError(f"{name}: has neither {POSITIVE} nor {NEGATIVE}; expected {_EXPECTED}")
    width = read_shape(find_base(settings.base.weights, settings.base.revision)).cross_attention_dim
    shapes = {tuple(values.shape) for values in found.values()}
    if len(shapes) > 1 or any(len(shape) != 3 or shape[0] != 1 or shape[2] != width for shape in shapes):
        shown = ", ".join(f"{key} {tuple(values.shape)}" for key, values in found.items())
        raise InputError(f"{name}: {shown}; expected one shape (1, tokens, {width}), as base.weights attends to")
    if broken := [key for key, values in found.items() if not values.isfinite().all()]:
        raise InputError(f"{name}: {broken[0]} has infinite or NaN values; expected finite ones")
    return found
