"""Changes to Stable Diffusion's parts: what changes, what must not, and what other programs can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.bases import DIM, save_base, tiny_unet, tiny_vae
from tests.helpers.parity import relative_error
from trainables.common.errors import InputError
from trainables.methods.build import build_method
from trainables.methods.method import trainable_parameters
from trainables.networks.stable_diffusion import (
    add_lora,
    check_controlnet,
    controlnet_from_unet,
    decode_kl,
    encode_kl,
    load_lora_state_dict,
    lora_differences,
    lora_metadata,
    lora_state_dict,
    merge_lora,
    predict,
    widen_conv_in,
)
from trainables.settings import override
from trainables.settings.presets import preset

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ALL_KINDS = (*ATTENTION, "conv_in", "conv1", "ff.net.0.proj")

ROUNDING = 1e-5
"""Relative error that one float32 pass through the UNet may have against another with equal weights. They differ where
weights lie at other addresses or are frozen, which takes other kernels: by 7e-7 at most, over the kernels for SSE4.1,
AVX2 and misaligned memory. What these tests look for is larger than 1e-3."""


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conditioning": torch.randn(2, 4, 8, 8, generator=generator),
        "noisy": torch.randn(2, 4, 8, 8, generator=generator),
        "t": torch.tensor([3, 900]),
        "prompt": torch.randn(1, 2, DIM, generator=generator),
    }


@torch.no_grad()
def output(unet: UNet2DConditionModel, inputs: dict[str, Tensor]) -> Tensor:
    if unet.config.in_channels == 8:
        return predict(unet, **inputs)
    return unet(inputs["noisy"], inputs["t"], inputs["prompt"].expand(2, -1, -1)).sample


def copy_of(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    copied = UNet2DConditionModel.from_config(unet.config).eval()
    copied.load_state_dict(unet.state_dict())
    return copied


def trained_lora(unet: UNet2DConditionModel, alpha: float = 6.0) -> UNet2DConditionModel:
    """A copy of the UNet with updates as after training."""
    trained = copy_of(unet)
    add_lora(trained, 3, alpha, ALL_KINDS)
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=generator)
    return trained


# conv_in


def test_zeros_keep_the_bases_output(inputs: dict[str, Tensor]) -> None:
    unet = tiny_unet()
    before = output(unet, inputs)
    widen_conv_in(unet, "zeros")
    assert relative_error(output(unet, inputs), before) < ROUNDING
    conditioning, noisy = unet.conv_in.weight.chunk(2, dim=1)
    assert not conditioning.any() and noisy.any()


def test_duplicate_equals_the_base_for_equal_latents(inputs: dict[str, Tensor]) -> None:
    unet = tiny_unet()
    before = output(unet, inputs)
    widen_conv_in(unet, "duplicate")
    same = inputs | {"conditioning": inputs["noisy"]}
    assert relative_error(output(unet, same), before) < ROUNDING
    assert relative_error(output(unet, inputs), before) > 1e-3


@pytest.mark.parametrize("init", ["zeros", "duplicate"])
def test_widened_unet_is_saved_and_loaded(tmp_path: Path, init: str, inputs: dict[str, Tensor]) -> None:
    unet = tiny_unet()
    unet.requires_grad_(False)
    widen_conv_in(unet, init)  # type: ignore[arg-type]
    assert not unet.conv_in.weight.requires_grad
    unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    assert loaded.config.in_channels == 8
    weights = loaded.state_dict()
    assert weights.keys() == unet.state_dict().keys()
    assert all(torch.equal(weights[name], values) for name, values in unet.state_dict().items())
    assert relative_error(output(loaded, inputs), output(unet, inputs)) < ROUNDING


def test_wide_unet_is_not_changed() -> None:
    unet = tiny_unet(in_channels=8)
    before = unet.conv_in.weight.clone()
    widen_conv_in(unet, "zeros")
    assert torch.equal(unet.conv_in.weight, before)


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels is 9"):
        widen_conv_in(tiny_unet(in_channels=9), "zeros")
    with pytest.raises(ValueError, match="'noise'"):
        widen_conv_in(tiny_unet(), "noise")  # type: ignore[arg-type]


# LoRA


def test_lora_starts_as_the_base_and_only_it_trains(inputs: dict[str, Tensor]) -> None:
    unet = tiny_unet()
    before, (_, base_size) = output(unet, inputs), trainable_parameters(unet)
    add_lora(unet, 4, 8.0, ATTENTION)
    assert relative_error(output(unet, inputs), before) < ROUNDING  # `before`, the weights were not frozen
    updates = {name: parameter for name, parameter in unet.named_parameters() if "lora_B" in name}
    assert updates and not any(parameter.any() for parameter in updates.values())
    trained, size = trainable_parameters(unet)
    assert trained == sum(values.numel() for values in lora_state_dict(unet).values()) == size - base_size
    unet(inputs["noisy"], inputs["t"], inputs["prompt"].expand(2, -1, -1)).sample.square().mean().backward()
    with_gradient = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in unet.named_parameters() if "lora_" in name}


def test_gradient_checkpointing_changes_no_gradient(inputs: dict[str, Tensor]) -> None:
    """Nothing before the first update needs a gradient, which would break reentrant checkpoints."""
    gradients = []
    for checkpointing in (False, True):
        unet = trained_lora(tiny_unet_of_seed(0)).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(inputs["noisy"], inputs["t"], inputs["prompt"].expand(2, -1, -1)).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in unet.parameters() if parameter.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None and checkpointed is not None
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-7)


def tiny_unet_of_seed(seed: int) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return tiny_unet()


@pytest.mark.parametrize("alpha", [3.0, 7.5])
def test_diffusers_reads_our_lora(tmp_path: Path, alpha: float, inputs: dict[str, Tensor]) -> None:
    base = tiny_unet()
    unet = trained_lora(base, alpha)
    assert relative_error(output(unet, inputs), output(base, inputs)) > 1e-2
    save_file(lora_state_dict(unet), tmp_path / "pytorch_lora_weights.safetensors", lora_metadata(unet))
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, base, metadata=metadata)
    assert relative_error(output(base, inputs), output(unet, inputs)) < ROUNDING


def test_lora_has_the_public_names() -> None:
    unet = tiny_unet()
    add_lora(unet, 2, 2.0, ["attn1.to_q"])
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert {f"{layer}.lora.down.weight", f"{layer}.lora.up.weight"} <= lora_state_dict(unet).keys()
    assert not any("attn2" in name for name in lora_state_dict(unet))


@pytest.mark.parametrize("naming", ["ours", "peft"])
def test_lora_is_loaded(naming: str, inputs: dict[str, Tensor]) -> None:
    base = tiny_unet()
    source, target = trained_lora(base), copy_of(base)
    add_lora(target, 3, 6.0, ALL_KINDS)
    state = lora_state_dict(source)
    if naming == "peft":
        state = {n.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): v for n, v in state.items()}
    load_lora_state_dict(target, state)
    loaded = lora_state_dict(target)
    assert all(torch.equal(loaded[name], values) for name, values in lora_state_dict(source).items())
    assert relative_error(output(target, inputs), output(source, inputs)) < ROUNDING


def test_lora_of_another_shape_is_refused() -> None:
    unet = tiny_unet()
    with pytest.raises(ValueError, match="call add_lora first"):
        load_lora_state_dict(unet, {})
    add_lora(unet, 2, 2.0, ATTENTION)
    state = lora_state_dict(unet)
    name = next(iter(state))
    with pytest.raises(ValueError, match=name):
        load_lora_state_dict(unet, {key: values for key, values in state.items() if key != name})
    with pytest.raises(ValueError, match=rf"{name} is .* another rank"):
        load_lora_state_dict(unet, state | {name: torch.zeros(1, 1)})
    with pytest.raises(ValueError, match=f"{name} has values that are infinite or NaN"):
        load_lora_state_dict(unet, state | {name: torch.full_like(state[name], float("nan"))})


def test_lora_differences_of_a_file() -> None:
    unet = tiny_unet()
    with pytest.raises(ValueError, match="call add_lora first"):
        lora_differences(unet, {}, {})
    add_lora(unet, 2, 4.0, ["to_q", "to_k"])
    state = lora_state_dict(unet)
    assert lora_differences(unet, state, lora_metadata(unet)) == {}
    assert lora_differences(unet, state, {"format": "pt"}) == {}

    def said(**adapter: Any) -> dict[str, Any]:
        metadata = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in adapter.items()})}
        return lora_differences(unet, state, metadata)

    assert said(r=2, lora_alpha=8) == {"scale": (4.0, 2.0)}
    assert said(r=4, lora_alpha=8) == {"rank": (4, 2)}
    assert said(r=2, lora_alpha=2 * 2**0.5, use_rslora=True) == {}
    assert said(target_modules=["attn1.to_q", "attn2.to_q", "to_k"]) == {}  # the same layers
    del state[next(name for name in state if ".to_k." in name)]
    assert said(target_modules=["to_q"]) == {"targets": (["to_q"], ["to_k", "to_q"])}
    with pytest.raises(ValueError, match="alpha_pattern is"):
        said(r=2, lora_alpha=4, alpha_pattern={"to_q": 8})
    for broken in ({"r": "x"}, {"r": 0, "lora_alpha": 1}, {"lora_alpha": None}):
        with pytest.raises(ValueError, match="it must be the JSON of an adapter's settings"):
            said(**broken)
    for text in ("{", "[]"):
        with pytest.raises(ValueError, match="it must be the JSON of an adapter's settings"):
            lora_differences(unet, state, {"lora_adapter_metadata": text})


def test_lora_file_must_match_the_trial(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    file = tmp_path / "pytorch_lora_weights.safetensors"
    changes = {"method": "latent_diffusion", "base.weights": str(tmp_path / "base"), "lora.rank": 2}

    def trained(**lora: Any) -> UNet2DConditionModel:
        named = {f"lora.{name}": value for name, value in lora.items()}
        trial = override(preset("sample").trial, changes | named)
        unet: UNet2DConditionModel = build_method(trial, torch.device("cpu")).networks["unet"]
        return unet

    source = trained(scale=4.0)
    for values in lora_state_dict(source).values():
        values.normal_()
    save_file(lora_state_dict(source), file, lora_metadata(source))
    loaded = lora_state_dict(trained(scale=4.0, weights=str(file)))
    assert all(torch.equal(loaded[name], values) for name, values in lora_state_dict(source).items())

    with pytest.raises(InputError) as error:
        trained(scale=1.0, weights=str(file))
    said = "it has lora.scale=4, the trial lora.scale=1; expected lora.scale=4 or another file"
    assert str(error.value) == f"lora.weights={file}: {said}"
    with pytest.raises(InputError) as error:
        trained(scale=4.0, weights=str(file), targets=("to_q",))
    assert "has lora.targets=to_k,to_out.0,to_q,to_v, the trial lora.targets=to_q;" in str(error.value)
    with pytest.raises(InputError, match=r"^lora\.targets=to_q,bogus: no layer's name ends in 'bogus'; they end in"):
        trained(targets=("to_q", "bogus"))

    save_file(lora_state_dict(source), file)  # without metadata
    trained(scale=1.0, weights=str(file))


def test_merged_lora_is_a_plain_unet(inputs: dict[str, Tensor]) -> None:
    base = tiny_unet()
    unet = trained_lora(base)
    before = output(unet, inputs)
    merge_lora(unet)
    assert list(unet.state_dict()) == list(base.state_dict())
    assert relative_error(output(unet, inputs), before) < ROUNDING
    assert relative_error(output(copy_of(unet), inputs), before) < ROUNDING
    with pytest.raises(ValueError, match="call add_lora first"):
        merge_lora(unet)


def test_lora_errors_name_accepted_values() -> None:
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(tiny_unet(), 0, 1.0, ATTENTION)
    with pytest.raises(ValueError, match=r"'to_out'; they end in .*conv_in, .*to_out\.0, to_q, to_v$"):
        add_lora(tiny_unet(), 2, 1.0, ["to_q", "to_out"])


# ControlNet


def controlled(unet: UNet2DConditionModel, controlnet: ControlNetModel, inputs: dict[str, Tensor]) -> Tensor:
    prompt, images = inputs["prompt"].expand(2, -1, -1), torch.ones(2, 3, 32, 32)
    down, mid = controlnet(inputs["noisy"], inputs["t"], prompt, controlnet_cond=images, return_dict=False)
    return unet(
        inputs["noisy"],
        inputs["t"],
        prompt,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample


def test_new_controlnet_adds_nothing_and_can_learn(inputs: dict[str, Tensor]) -> None:
    unet = tiny_unet()
    before = output(unet, inputs)
    controlnet = controlnet_from_unet(unet, 3, (4, 8, 8), factor=4)
    check_controlnet(controlnet, unet, factor=4)
    after = controlled(unet, controlnet, inputs)
    assert relative_error(after.detach(), before) < ROUNDING
    after.square().mean().backward()
    learning = {name for name, parameter in controlnet.named_parameters() if parameter.grad is not None}
    assert any(controlnet.get_parameter(name).grad.any() for name in learning if "controlnet_down_blocks" in name)


def test_conditioning_must_be_reduced_to_latent_size() -> None:
    with pytest.raises(ValueError, match=r"\(4, 8\); 4 widths halve images to latents 1/8"):
        controlnet_from_unet(tiny_unet(), 3, (4, 8))
    with pytest.raises(ValueError, match="3 widths"):
        check_controlnet(controlnet_from_unet(tiny_unet(), 3, (4, 4, 4, 8)), tiny_unet(), factor=4)


def test_controlnet_must_fit_the_unet(tmp_path: Path) -> None:
    controlnet_from_unet(tiny_unet(), 3, (4, 8, 8), factor=4).save_pretrained(tmp_path)
    loaded = ControlNetModel.from_pretrained(tmp_path)
    check_controlnet(loaded, tiny_unet(), factor=4)
    with pytest.raises(ValueError, match="cross_attention_dim is 32; it must be the UNet's 16"):
        check_controlnet(loaded, tiny_unet(cross_attention_dim=16), factor=4)
    with pytest.raises(ValueError, match=r"block_out_channels is \[16, 32\]"):
        check_controlnet(loaded, tiny_unet(block_out_channels=(16, 16)), factor=4)
    with pytest.raises(ValueError, match="conditioning_channels is 4; it must be 3"):
        check_controlnet(controlnet_from_unet(tiny_unet(), 4, (4, 8, 8), factor=4), tiny_unet(), factor=4)


@pytest.mark.parametrize(
    "changed",
    [
        {"in_channels": 8},
        {"down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D")},
        {"mid_block_type": "UNetMidBlock2D"},
        {"layers_per_block": 2},
        {"attention_head_dim": 8},
        {"use_linear_projection": True},
        {"flip_sin_to_cos": False},
        {"norm_num_groups": 8},
        {"num_class_embeds": 3},
    ],
)
def test_controlnet_of_another_unet_is_refused(changed: dict[str, Any]) -> None:
    other = tiny_unet(**changed)
    (name,) = changed
    with pytest.raises(ValueError, match=f"the ControlNet's {name} is .*; it must be the UNet's "):
        check_controlnet(controlnet_from_unet(other, 3, (4, 8, 8), factor=4), tiny_unet(), factor=4)


@pytest.mark.parametrize(
    ("of_unet", "of_controlnet"),
    [
        ({"attention_head_dim": 4}, {"attention_head_dim": 4}),
        ({"attention_head_dim": 4}, {"attention_head_dim": [4, 4]}),
        ({"attention_head_dim": [2, 4], "use_linear_projection": True}, {"attention_head_dim": [2, 4]}),
        ({"attention_head_dim": [2, 4]}, {"attention_head_dim": 8, "num_attention_heads": [2, 4]}),
        ({"upcast_attention": True}, {"upcast_attention": False}),
        ({}, {"mid_block_scale_factor": 1.0, "transformer_layers_per_block": [1, 1], "only_cross_attention": False}),
    ],
)
def test_configurations_of_the_public_controlnets_fit(
    tmp_path: Path, of_unet: dict[str, Any], of_controlnet: dict[str, Any]
) -> None:
    """Those of 2023 lack newer keys of diffusers, and one value for all blocks may be repeated for each block."""
    unet = tiny_unet(**of_unet)
    controlnet_from_unet(unet, 3, (4, 8, 8), factor=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in (
        "conditioning_channels",
        "mid_block_type",
        "num_attention_heads",
        "transformer_layers_per_block",
        "addition_embed_type",
        "encoder_hid_dim",
    ):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config | of_controlnet))
    check_controlnet(ControlNetModel.from_pretrained(tmp_path), unet, factor=4)


# KL latents


@torch.no_grad()
def test_latents_are_the_scaled_mean() -> None:
    vae, images = tiny_vae(scaling_factor=0.5), torch.rand(2, 3, 16, 24) * 2 - 1
    latents = encode_kl(vae, images)
    assert latents.shape == (2, 4, 4, 6)
    assert torch.allclose(latents * 2, vae.encode(images).latent_dist.mode())
    assert torch.allclose(decode_kl(vae, latents), vae.decode(latents * 2).sample, atol=1e-6)


@torch.no_grad()
def test_latents_are_float32_under_autocast() -> None:
    vae, images = tiny_vae(), torch.rand(1, 3, 16, 16) * 2 - 1
    latents = encode_kl(vae, images)
    decoded = decode_kl(vae, latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode_kl(vae, images), latents)
        assert torch.equal(decode_kl(vae, latents), decoded)


def test_gradients_pass_through_the_decoder() -> None:
    torch.manual_seed(0)
    vae, latents = tiny_vae().requires_grad_(False), torch.randn(1, 4, 2, 2, requires_grad=True)
    decode_kl(vae, latents).square().mean().backward()
    assert latents.grad is not None
    slope = latents.grad.norm()
    with torch.no_grad():
        step = 1e-2 * latents.grad / slope
        above, below = (decode_kl(vae, latents + sign * step).square().mean() for sign in (1, -1))
    assert float(above - below) / 2e-2 == pytest.approx(float(slope), rel=1e-2)


def test_sides_must_be_multiples_of_the_factor() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        encode_kl(tiny_vae(), torch.zeros(1, 3, 18, 16))
