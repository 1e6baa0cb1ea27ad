"""Weights are found in a checkpoint whatever its trainer wrapped around them, and nothing in it is run."""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables.common.errors import InputError, one_line
from trainables.networks.autoencoder import build_vq_f4
from trainables.networks.checkpoint_files import load_strictly, read_weights, weights_in
from trainables.pretrained.autoencoders import load_autoencoder

WEIGHTS = {"a.weight": torch.ones(2), "module_list.0.bias": torch.zeros(1)}


def _prefixed(*prefixes: str) -> dict[str, Tensor]:
    return {"".join(prefixes) + name: value for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        _prefixed("module."),
        _prefixed("_orig_mod."),
        _prefixed("module._orig_mod."),
        _prefixed("_orig_mod.module."),
        _prefixed("_fsdp_wrapped_module."),
        _prefixed("module._forward_module."),
        {"state_dict": _prefixed("module.")},
        {"params": _prefixed("b."), "params_ema": WEIGHTS},
        {"params_ema": _prefixed("module."), "iteration": 3},
        {"step": torch.tensor(3), "state_dict": WEIGHTS},
        {"epoch": 1, "model": {"state_dict": WEIGHTS}},
        {"model_state_dict": WEIGHTS, "optimizer": {"state": {}}},
        {"a._orig_mod.weight": torch.ones(2), "module_list.0.bias": torch.zeros(1)},
        {"a._checkpoint_wrapped_module.weight": torch.ones(2), "module_list.0.bias": torch.zeros(1)},
        {**_prefixed("module."), "loss.discriminator.weight": torch.ones(1)},
        {"state_dict": {**_prefixed("module._orig_mod."), "module._orig_mod.loss.logvar": torch.ones(())}},
        *({"model": _prefixed("b."), name: WEIGHTS} for name in ("ema", "ema_state_dict", "model_ema", "g_ema")),
        {"module": WEIGHTS, "optimizer": {"state": {}}, "global_steps": 3},
        {"ema": {"shadow_params": [torch.ones(2)], "decay": 0.99}, "model": WEIGHTS},
        {"model": WEIGHTS, "state_dict": WEIGHTS},
        {"state_dict": WEIGHTS, "ema": {"decay": torch.tensor(0.99)}},
    ],
    ids=range(25),
)
def test_weights_are_found(content: Any) -> None:
    found = weights_in(content, without=("loss.",))
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": _prefixed("model.") | {"criterion.weight": torch.ones(1)}},
        {"state_dict": _prefixed("model.module._orig_mod."), "epoch": 3},
        {"state_dict": _prefixed("net_g.") | {"net_d.c.weight": torch.ones(1)}},
        {"state_dict": _prefixed("model.") | {f"ema_{n}": v + 1 for n, v in _prefixed("model.").items()}},
        {"module": _prefixed("module.model."), "ds_version": "0.17"},
        {"model": WEIGHTS, "network": {"another.weight": torch.ones(1)}},
    ],
    ids=["lightning", "distributed inside", "two of a GAN", "averaged", "deepspeed", "another network"],
)
def test_names_of_the_network_tell_what_is_before_them(content: Any) -> None:
    found = weights_in(content, own=("a.", "module_list."))
    averaged = any(name.startswith("ema_") for name in content.get("state_dict", ()))
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name] + averaged) for name in WEIGHTS)


def test_names_that_begin_like_a_wrapper_stay() -> None:
    """As those of Pix2Pix's official generator."""
    official = _prefixed("model.")
    assert weights_in({"state_dict": official}, own=("model.a.",)).keys() == official.keys()
    assert weights_in({"state_dict": _prefixed("model.model.")}, own=("model.a.", "model.module_")).keys() == (
        official.keys()
    )


@pytest.mark.parametrize(
    ("content", "both"),
    [
        ({"ema": WEIGHTS, "g_ema": _prefixed("")}, "g_ema and ema"),
        ({"model": WEIGHTS, "network": _prefixed("")}, "model and network"),
        ({"state_dict": _prefixed("model.") | _prefixed("net_g.")}, "state_dict.model and state_dict.net_g"),
        (WEIGHTS | _prefixed("net_g."), "its top level and net_g"),
    ],
    ids=range(4),
)
def test_two_networks_that_fit_are_refused(content: Any, both: str) -> None:
    with pytest.raises(ValueError, match=f"^two networks in it fit, {both}; save the one that is meant alone$"):
        weights_in(content, own=("a.", "module_list."))


def test_dictionaries_in_themselves_are_refused() -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    with pytest.raises(ValueError, match="no weights in it"):
        weights_in(content)


@pytest.mark.parametrize("content", [3, {}, [1], {"state_dict": {"epoch": 3}}, {"weights": WEIGHTS}, "text"])
def test_content_without_weights_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="no weights in it"):
        weights_in(content)


def test_names_that_become_equal_are_refused() -> None:
    with pytest.raises(ValueError, match="a is in it twice"):
        weights_in({"a": torch.ones(1), "module.a": torch.ones(1)})


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`foreign("package.module", "Name", base)`: a class of a package that is not installed."""

    def make(module: str, name: str, base: type = object) -> Any:
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            part = ".".join(parts[:count])
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        made = type(name, (base,), {"__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    return make


def test_what_trainers_save_beside_weights_is_left_out(tmp_path: Path, foreign: Callable[..., Any]) -> None:
    early_stopping = foreign("lightning.callbacks.early_stopping", "EarlyStopping")
    attributes = foreign("lightning.parsing", "AttributeDict", dict)(lr=1e-4, betas=[1, 2])
    config = foreign("omegaconf.dictconfig", "DictConfig")()
    config.content = {"a": 1}
    content = {
        "state_dict": {**_prefixed("module."), "module.loss.w": torch.ones(1)},
        "callbacks": {early_stopping: {"best": pathlib.PurePosixPath("best.ckpt"), "score": np.float64(0.5)}},
        "hyper_parameters": attributes,
        "config": config,
        "arguments": argparse.Namespace(batch=4),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "array": np.arange(3),
        "function": print,
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert read_weights(tmp_path / "last.ckpt", without=("loss.",)).keys() == WEIGHTS.keys()


def test_files_of_an_older_torch_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pth").keys() == WEIGHTS.keys()


class _Runs:
    """Calls a function when it is unpickled without protection."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize("function", ["os.system", "builtins.exec", "subprocess.getoutput"])
def test_nothing_is_run(function: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "evil.ckpt"
    module, _, name = function.rpartition(".")
    command = f"open({str(mark)!r}, 'w')" if name == "exec" else f"touch '{mark}'"
    torch.save({"state_dict": WEIGHTS, "callbacks": _Runs(getattr(__import__(module), name), command)}, path)
    if name == "system":  # of a module that torch's reader blocks altogether
        with pytest.raises(ValueError, match=r"^it holds more than weights \(Trying to load .* posix\."):
            read_weights(path)
    else:
        assert read_weights(path).keys() == WEIGHTS.keys()
    assert not mark.exists()


def _compiled_vq(tmp_path: Path) -> str:
    """As an official trainer saves it: names of latent-diffusion, compiled and distributed, with its losses."""
    model = build_vq_f4(32, (1,), 1, 16)
    state = {
        f"module._orig_mod.{name}": value
        for name, value in {
            "encoder.down.0.block.0.conv1.weight": model.encoder.down_blocks[0].resnets[0].conv1.weight,
            "quantize.embedding.weight": model.quantize.embedding.weight,
            "loss.discriminator.main.0.weight": torch.ones(1),
        }.items()
    }
    torch.save({"state_dict": state}, tmp_path / "vq.ckpt")
    return str(tmp_path / "vq.ckpt")


def test_message_counts_and_names_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a VQ-f4 autoencoder: \d+ weights missing: encoder\.conv_in\.") as caught:
        load_autoencoder(_compiled_vq(tmp_path))
    assert "loss." not in str(caught.value) and "module" not in str(caught.value)


def test_strict_load_names_every_kind_of_difference() -> None:
    network = nn.Linear(2, 2)
    load_strictly(network, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    assert torch.equal(network.bias, torch.ones(2))
    with pytest.raises(RuntimeError, match=r"^1 weights missing: bias; 1 weights unexpected: b$"):
        load_strictly(network, {"weight": torch.ones(2, 2), "b": torch.ones(2)})
    with pytest.raises(RuntimeError, match=r"^size mismatch for bias: \(3,\), not \(2,\)$"):
        load_strictly(network, {"weight": torch.ones(2, 2), "bias": torch.ones(3)})


@pytest.mark.parametrize("place", [0, 700], ids=["at the start", "at the end"])
def test_messages_keep_the_cause_and_lose_colours(place: int) -> None:
    advice = "advice " * 100
    text = f"{advice[:place]}\x1b[1mthe cause\x1b[0m\n{advice[place:]}"
    line = one_line(text)
    assert "the cause" in line and "\x1b" not in line and "\n" not in line and len(line) <= 300
