"""LoRA files of other programs start a trial, whatever the spelling of their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.bases import tiny_unet
from trainables.networks.stable_diffusion import (
    add_lora,
    load_lora_state_dict,
    lora_differences,
    lora_metadata,
    lora_state_dict,
)
from trainables.pretrained.lora_file import read_lora

RANK, ALPHA = 3, 6.0
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """With updates as after training."""
    made = tiny_unet()
    add_lora(made, RANK, ALPHA, ["to_q", "to_out.0", "conv1"])
    generator = torch.Generator().manual_seed(0)
    for values in lora_state_dict(made).values():
        values.normal_(generator=generator)
    return made


def _kohya(state: State, alpha: float = ALPHA) -> State:
    written: State = {}
    for name, value in state.items():
        layer, side = name.removeprefix("unet.").removesuffix(".weight").split(".lora.")
        written[f"lora_unet_{layer.replace('.', '_')}.lora_{side}.weight"] = value
        written[f"lora_unet_{layer.replace('.', '_')}.alpha"] = torch.tensor(alpha)
    return written


def _peft(state: State) -> State:
    sides = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B."}
    for public, own in sides.items():
        state = {name.replace(public, own): value for name, value in state.items()}
    return {f"base_model.model.{name.removeprefix('unet.')}": value for name, value in state.items()}


def _old_diffusers(state: State) -> State:
    spelt = {".to_q.lora.": ".processor.to_q_lora.", ".to_out.0.lora.": ".processor.to_out_lora."}
    for new, old in spelt.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    return state


SPELLINGS: dict[str, Callable[[State], State]] = {
    "diffusers": dict,
    "kohya": _kohya,
    "peft": _peft,
    "peft with an adapter's name": lambda state: {
        name.replace(".weight", ".default.weight"): value for name, value in _peft(state).items()
    },
    "peft with an adapter for each part": lambda state: {
        name.replace(".weight", f".default_{'encoder' if 'conv1' in name else 'others'}.weight"): value
        for name, value in _peft(state).items()
    },
    "older diffusers": _old_diffusers,
    "without unet.": lambda state: {name.removeprefix("unet."): value for name, value in state.items()},
}


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling_is_read(spelling: str, folder: bool, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    expected = lora_state_dict(unet)
    file = tmp_path / ("adapter_model.safetensors" if "peft" in spelling else "any_name.safetensors")
    save_file({name: value.contiguous() for name, value in SPELLINGS[spelling](expected).items()}, file)
    state, metadata = read_lora(tmp_path if folder else file, unet)
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)
    assert lora_differences(unet, state, metadata) == {}
    load_lora_state_dict(unet, state)


def test_kohyas_names_are_those_that_diffusers_converts(tmp_path: Path) -> None:
    """A second implementation of the names, for the layers that both know."""
    unet = tiny_unet()
    add_lora(unet, RANK, ALPHA, ["to_q", "to_k", "to_out.0"])
    file = tmp_path / "kohya.safetensors"
    save_file(_kohya(lora_state_dict(unet)), file)
    theirs, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path, weight_name=file.name)
    assert set(alphas.values()) == {ALPHA}
    save_file(theirs, tmp_path / "converted.safetensors")
    ours, converted = (read_lora(path, unet)[0] for path in (file, tmp_path / "converted.safetensors"))
    assert ours.keys() == converted.keys() and all(torch.equal(ours[name], converted[name]) for name in ours)


def test_scale_comes_from_alphas_and_from_pefts_configuration(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    save_file(_kohya(lora_state_dict(unet), alpha=RANK), tmp_path / "kohya.safetensors")
    assert lora_differences(unet, *read_lora(tmp_path / "kohya.safetensors", unet)) == {"scale": (1.0, ALPHA / RANK)}
    save_file(_peft(lora_state_dict(unet)), tmp_path / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": 12, "peft_type": "LORA", "target_modules": ["to_q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    state, metadata = read_lora(tmp_path / "adapter_model.safetensors", unet)
    assert lora_differences(unet, state, metadata) == {"scale": (4.0, ALPHA / RANK)}


def _without_alpha_of_one(state: State) -> State:
    written = _kohya(state)
    del written[next(name for name in written if name.endswith(".alpha"))]
    return written


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "text encoder": (
        lambda state: {**_kohya(state), "lora_te_text_model_encoder_layers_0.lora_down.weight": torch.ones(1)},
        "1 of its weights update the text encoder, such as lora_te_text_model",
    ),
    "DoRA": (lambda state: {**_kohya(state), "lora_unet_x.dora_scale": torch.ones(1)}, "it is a DoRA"),
    "another layer": (
        lambda state: {**_kohya(state), "lora_unet_mid_block_x.lora_down.weight": torch.ones(1)},
        "1 of its layers are not among lora.targets, such as lora_unet_mid_block_x",
    ),
    "several alphas": (_without_alpha_of_one, "expected one for all layers"),
    "several ranks": (
        lambda state: {n: v[:1] if i == 0 and ".down." in n else v for i, (n, v) in enumerate(state.items())},
        "layers of ranks 1, 3; expected one rank",
    ),
    "ComfyUI": (
        lambda state: {n.replace("unet.", "diffusion_model.input_blocks."): v for n, v in state.items()},
        r"^diffusion_model.*: these are ComfyUI's names; expected a LoRA of a UNet in safetensors, with the names of",
    ),
    "a transformer": (
        lambda state: {n.replace("unet.", "transformer."): v for n, v in state.items()},
        "it updates a transformer, such as Flux's or Stable Diffusion 3's; expected a LoRA of a UNet",
    ),
    "LyCORIS": (lambda state: {"lora_unet_x.hada_w1_a": torch.ones(1)}, "it is a LoHa or LoKr of LyCORIS; expected"),
    "no LoRA": (
        lambda state: {"conv.weight": torch.ones(1)},
        r"^without LoRA weights; expected a LoRA of a UNet in safetensors, with the names of",
    ),
    "two adapters": (
        lambda state: {
            name.replace(".weight", f".{adapter}.weight"): value.clone()
            for adapter in ("pixel", "semantic")
            for name, value in _peft(state).items()
        },
        "of several adapters, pixel, semantic; save the one that is meant alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unclear_is_refused(case: str, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    save_file({n: v.contiguous() for n, v in change(lora_state_dict(unet)).items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        read_lora(tmp_path / "a.safetensors", unet)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_pickled_file_is_named(folder: bool, unet: UNet2DConditionModel, tmp_path: Path) -> None:
    torch.save(lora_state_dict(unet), tmp_path / "adapter_model.bin")
    with pytest.raises(
        ValueError, match=r"^adapter_model\.bin is a file of torch\.save; expected .* in safetensors, with"
    ):
        read_lora(tmp_path if folder else tmp_path / "adapter_model.bin", unet)


@pytest.mark.parametrize("names", [(), ("a.safetensors", "b.safetensors")], ids=["none", "two"])
def test_folder_must_hold_one_file(names: tuple[str, ...], unet: UNet2DConditionModel, tmp_path: Path) -> None:
    for name in names:
        save_file(lora_state_dict(unet), tmp_path / name, lora_metadata(unet))
    with pytest.raises(ValueError, match=f"a folder with {len(names)} LoRA files; expected one pytorch_lora_weights"):
        read_lora(tmp_path, unet)
