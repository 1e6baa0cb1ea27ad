"""Checkpoints of public implementations (.pth, .pt, .ckpt): the weights in them, whatever wraps them.

Nothing in a file is run: torch's weights-only reader builds tensors and plain containers, and whatever else a trainer
saved next to the weights (Lightning's callbacks, configurations) becomes an empty container.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from trainables.networks.plain_files import load_plain

# Where trainers keep the weights of one network, the averaged ones, and what they call it before its names.
_AVERAGED = ("params_ema", "state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "g_ema", "ema")
_PLAIN = ("params", "state_dict", "model_state_dict", "model", "module", "network", "net", "generator")
_NETWORKS = (*_AVERAGED, "model", "module", "network", "net", "net_g", "netG", "generator")
_WRAPPERS = r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)"
"""What torch.compile, FSDP, checkpointed layers and DeepSpeed add to names, anywhere in them."""
_DEPTH = 5  # of dictionaries in each other
_NUMPY_TYPES = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type(np.dtype))]
_SHOWN = 3  # names per kind in a message


class _LeftOut:
    """Stands for every class that the reader does not know. Making one makes an empty container."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def read_checkpoint(path: Path) -> Any:
    """The content of a file of `torch.save`, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of `torch.save`, or one that cannot be read without running code.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of torch before 1.6, which the reader below accepts, or no checkpoint
        unknown = []
    known = _numpy_globals()
    stand_ins: list[Any] = [(known.get(name, _LeftOut), name) for name in unknown]
    stand_ins += _NUMPY_TYPES
    with torch.serialization.safe_globals(stand_ins):
        try:
            return load_plain(path)
        except FileNotFoundError:
            raise
        except Exception as error:  # from the reader, zip archives or the file system
            raise ValueError(_cause(error)) from None


def _numpy_globals() -> dict[str, Any]:
    """Name in a pickle -> what builds NumPy's arrays and scalars, which cannot run code."""
    # Since NumPy 2 the module has an underscore.
    made = {f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
    parts: dict[str, Any] = {name: getattr(multiarray, name.rpartition(".")[2]) for name in made}
    return parts | {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}


def _cause(error: Exception) -> str:
    """The cause in a message of torch, which puts advice before and after it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if not text.startswith("Weights only load failed"):
        return text or type(error).__name__
    paragraphs = text.rpartition("WeightsUnpickler error:")[2].split("\n\n")
    told = [part for part in paragraphs if not part.startswith(("Weights only load failed", "Check the documentation"))]
    cause = " ".join(" ".join(told).split()).partition(". Please use")[0].rstrip(".")
    return f"it holds more than weights ({cause}); save its state_dict alone"


def weights_in(content: Any, without: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The weights of one network in a checkpoint's content, by the network's own names.

    Args:
        content: the weights themselves, or a dictionary that holds them under one of the usual names; averaged weights
            are preferred. The prefix `module.` of distributed training and those of wrappers, such as `_orig_mod.` of
            `torch.compile`, are removed, in any order.
        without: first parts of names to leave out, such as "loss.".
        own: starts of the network's own names. With them, what a trainer calls the network, such as `model.` in
            Lightning's files, is removed too, and what stands beside it under other names is left out.

    Raises:
        ValueError: no weights, two networks that fit, or two weights with the same name.
    """
    found = _networks(content)
    if not found:
        raise ValueError(
            "no weights in it; expected names with tensors, also below state_dict, params_ema and the like"
        )
    fitting = [(place, prefix, one) for place, one in found for prefix in _prefixes(one, own)]
    # An average's own counters (`decay`, `num_updates`) are no network.
    least = max((len(one) for _, _, one in fitting), default=0) / 2
    fitting = [one for one in fitting if len(one[2]) > least]
    averaged = [one for one in fitting if set(f"{one[0]}{one[1]}".split(".")) & set(_AVERAGED)]
    chosen = averaged or fitting or [("", "", found[0][1])]  # weights that do not fit are named by the load
    if len(chosen) > 1:
        both = " and ".join(f"{place}{prefix}".rstrip(".") or "its top level" for place, prefix, _ in chosen[:2])
        raise ValueError(f"two networks in it fit, {both}; save the one that is meant alone")
    _, prefix, weights = chosen[0]
    return _own_weights(weights, prefix, without)


def _networks(content: Any, place: str = "", depth: int = 0) -> list[tuple[str, Mapping[str, Tensor]]]:
    """(its place, such as "model.params_ema.", its weights) of each network in a checkpoint."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return []
    found: dict[int, tuple[str, Mapping[str, Tensor]]] = {}
    for name in (*_AVERAGED, *_PLAIN):
        for inner, weights in _networks(content.get(name), f"{place}{name}.", depth + 1):
            found.setdefault(id(weights), (inner, weights))
    if found:
        return list(found.values())
    return [(place, content)] if any(isinstance(value, Tensor) for value in content.values()) else []


def _prefixes(weights: Mapping[str, Tensor], own: tuple[str, ...]) -> list[str]:
    """What stands before the network's own names, such as "" or "model."; several, if several networks fit."""
    found = {}
    for name in (name for name, value in weights.items() if isinstance(value, Tensor)):
        prefix, rest = "", _plain(name)
        while own and not rest.startswith(own):
            part, dot, rest = rest.partition(".")
            if not dot or part not in _NETWORKS:
                break
            prefix += f"{part}."
        else:
            found[prefix] = True
    return list(found)


def _plain(name: object) -> str:
    """A name without what distributed training and `torch.compile` add."""
    return re.sub(r"^(module\.)+", "", re.sub(rf"(^|\.){_WRAPPERS}(?=\.)", "", str(name)).lstrip("."))


def _own_weights(weights: Mapping[str, Tensor], prefix: str, without: tuple[str, ...]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        plain = _plain(name)
        own = plain.removeprefix(prefix)
        if not isinstance(value, Tensor) or not plain.startswith(prefix) or (without and own.startswith(without)):
            continue
        if own in found:
            raise ValueError(f"{own} is in it twice, once as {name}")
        found[own] = value
    return found


def read_weights(path: Path, without: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """`weights_in` the content of a file."""
    return weights_in(read_checkpoint(path), without, own)


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads weights that must have the names and shapes of the network.

    Raises:
        RuntimeError: the message counts and names what is missing, unexpected or of another shape.
    """
    own = network.state_dict()
    other = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    fitting = {name: value for name, value in weights.items() if name not in other}
    # Torch knows which weights may be missing: counters that older files lack.
    missing, unexpected = network.load_state_dict(fitting, strict=False)
    problems = [
        f"{len(names)} weights {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (
            ("missing", [name for name in missing if name not in other]),
            ("unexpected", unexpected),
        )
        if names
    ]
    if other:
        name, more = other[0], f" and {len(other) - 1} more" if len(other) > 1 else ""
        problems.append(f"size mismatch for {name}{more}: {tuple(weights[name].shape)}, not {tuple(own[name].shape)}")
    if problems:
        raise RuntimeError("; ".join(problems))


def alike(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> bool:
    """Whether weights are equal up to half precision, in which bases are often stored."""
    return theirs.keys() == ours.keys() and all(_equal(theirs[name], ours[name].cpu()) for name in theirs)


def _equal(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and bool((theirs - ours).abs().max() <= 1e-3 * ours.abs().max())
