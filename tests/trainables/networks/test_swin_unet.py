"""The Swin U-Net: layout, input sizes and conditioning; its faster computations change no result."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.paths import EXPECTED
from trainables.networks.swin import _shift_mask
from trainables.networks.swin_unet import SwinUNet, timestep_embedding
from trainables.pretrained.resshift import build_network
from trainables.settings.presets import preset

TINY: dict[str, Any] = {
    "image_size": 16,
    "model_channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_resolutions": (16,),
    "num_head_channels": 16,
    "swin_embed_dim": 32,
    "mlp_ratio": 2,
}


def build(**changes: Any) -> SwinUNet:
    """A tiny network with random weights everywhere: as built, its residual blocks start at zero."""
    network = SwinUNet(**(TINY | changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(height: int = 16, width: int = 16, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, lq = (torch.randn(batch, 3, height, width, generator=generator) for _ in range(2))
    return x, torch.arange(batch) * 5, lq


def test_default_parameters_are_the_released_network() -> None:
    shapes = json.loads((EXPECTED / "official_shapes.json").read_text())["UNetModelSwin"]
    derived = {k for k in shapes if k.endswith(("relative_position_index", "attn_mask"))}
    with torch.device("meta"):
        network = SwinUNet()
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == {
        k: v for k, v in shapes.items() if k not in derived
    }


@pytest.mark.parametrize("wrapped", [False, True])
def test_official_checkpoint_forms_are_loaded(wrapped: bool) -> None:
    source, target = build(), SwinUNet(**TINY)
    state = source.state_dict()
    state["input_blocks.1.1.blocks.1.attn_mask"] = torch.zeros(4, 64, 64)
    state["input_blocks.1.1.blocks.1.attn.relative_position_index"] = torch.zeros(64, 64)
    if wrapped:
        target.load_official_state_dict({"state_dict": {f"module.{k}": v for k, v in state.items()}})
    else:
        target.load_official_state_dict(state)
    loaded = target.state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in source.state_dict().items())
    x, t, lq = inputs()  # and what is no weight is equal too, but for the rounding of weights at other addresses
    torch.testing.assert_close(target(x, t, lq=lq), source(x, t, lq=lq), rtol=1e-4, atol=1e-5)


def test_wrong_weights_are_refused_by_name() -> None:
    state = SwinUNet(**TINY).state_dict()
    state["middle_block.9.weight"] = state.pop("out.2.weight")
    with pytest.raises(RuntimeError) as error:
        SwinUNet(**TINY).load_official_state_dict(state)
    assert "middle_block.9.weight" in str(error.value) and "out.2.weight" in str(error.value)


def test_output_starts_independent_of_the_timestep() -> None:
    """The convolutions after the timestep's modulation start at zero, as in the official network."""
    network = SwinUNet(**TINY)
    x, _, lq = inputs()
    first, last = (network(x, torch.full((2,), t), lq=lq) for t in (0, 14))
    assert torch.equal(first, last)


def test_output_depends_on_every_input() -> None:
    network = build()
    x, t, lq = inputs()
    output = network(x, t, lq=lq)
    for changed in ((x + 1, t, lq), (x, t + 1, lq), (x, t, lq + 1)):
        assert not torch.allclose(network(changed[0], changed[1], lq=changed[2]), output, atol=1e-3)


@pytest.mark.parametrize("size", [(16, 16), (32, 16), (16, 48)])
@pytest.mark.parametrize("changes", [{}, {"window_size": 4, "swin_depth": 3}, {"attention_resolutions": ()}])
def test_any_multiple_of_the_windows_is_accepted(size: tuple[int, int], changes: dict[str, Any]) -> None:
    network = build(**changes)
    x, t, lq = inputs(*size)
    output = network(x, t, lq=lq)
    assert output.shape == x.shape and output.is_contiguous()


def test_samples_of_a_batch_do_not_mix() -> None:
    network = build()
    x, t, lq = inputs(32, 32, batch=3)
    together = network(x, t, lq=lq)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], lq=lq[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_inference_equals_training_forward() -> None:
    network = build()
    x, t, lq = inputs(32, 32)
    expected = network(x, t, lq=lq).detach()
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(x, t, lq=lq), expected, rtol=1e-4, atol=1e-5)
    network(x, t, lq=lq).sum().backward()  # tensors cached in inference mode must not break it


def test_weights_changed_in_place_take_effect() -> None:
    network = build().eval()
    x, t, lq = inputs()
    with torch.no_grad():
        before = network(x, t, lq=lq)
        for name, parameter in network.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.data.mul_(-3)
        assert not torch.allclose(network(x, t, lq=lq), before, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain = build()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing = True
    x, t, lq = inputs()
    for network in (plain, checkpointed):
        network(x, t, lq=lq).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad)


def test_bfloat16_autocast_stays_close() -> None:
    network = build()
    x, t, lq = inputs()
    expected = network(x, t, lq=lq)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x, t, lq=lq)
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_conditioning_is_resized_to_the_latents() -> None:
    x, t, lq = inputs()
    quarter = lq[:, :, :4, :4]
    network = build()
    repeated = quarter.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert torch.equal(network(x, t, lq=quarter), network(x, t, lq=repeated))

    twice = inputs(32, 32)[2]
    patches = twice.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, 3, 16, 16, 2, 2)
    patches = patches.permute(0, 1, 4, 5, 2, 3).reshape(2, 12, 16, 16)
    network = build(in_channels=15)
    assert torch.equal(network(x, t, lq=twice), network(x, t, lq=patches))


def test_shift_mask_separates_left_and_right_in_the_last_row_of_windows() -> None:
    mask = _shift_mask(2, 3, 4, 2, torch.device("cpu"))
    assert mask.shape == (6, 1, 16, 16)
    assert not mask[:3].any()
    column = torch.arange(16) % 4
    for window in mask[3:, 0]:
        assert torch.equal(window < 0, (column[:, None] < 2) != (column < 2))


def test_timestep_embedding_of_zero_is_ones_then_zeros() -> None:
    embedding = timestep_embedding(torch.tensor([0, 3]), 9)
    assert embedding.shape == (2, 9)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert float(embedding[1, 0]) == pytest.approx(float(torch.cos(torch.tensor(3.0))))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_channels": 24}, r"\[24, 24\].*multiples of 32"),
        ({"swin_embed_dim": 48}, "swin_embed_dim 48"),
        ({"num_head_channels": 24}, "num_head_channels is 24"),
        ({"num_res_blocks": (1, 1, 1)}, r"num_res_blocks is \[1, 1, 1\]"),
        ({"image_size": 15}, "image_size is 15"),
        ({"window_size": 7}, "window_size is 7"),
        ({"channel_mult": ()}, "at least one level"),
    ],
)
def test_invalid_layouts_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SwinUNet(**(TINY | changes))


def test_invalid_inputs_are_refused() -> None:
    network = build()
    x, t, lq = inputs(24, 16)
    with pytest.raises(ValueError, match="x is 24x16; both sides must be multiples of 16"):
        network(x, t, lq=lq)
    x, t, lq = inputs()
    with pytest.raises(ValueError, match=r"lq is 12x16"):
        network(x, t, lq=lq[:, :, :12])
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\); it must be \(B, 6, H, W\)"):
        network(x, t)


def test_official_biases_are_cropped_for_smaller_windows() -> None:
    """At half the size the deepest windows are 4 wide instead of 8; their biases are those of the same offsets."""
    layout = {"in_channels": 6, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "channel_mult": (1, 2)}
    layout |= {"swin_embed_dim": 32, "num_head_channels": 16, "window_size": 8, "mlp_ratio": 2.0}
    wide = SwinUNet(image_size=16, attention_resolutions=(16, 8), **layout)  # type: ignore[arg-type]
    narrow = SwinUNet(image_size=8, attention_resolutions=(8, 4), **layout)  # type: ignore[arg-type]
    narrow.load_official_state_dict(wide.state_dict())
    name = "middle_block.1.blocks.0.attn.relative_position_bias_table"
    official, cut = wide.state_dict()[name], narrow.state_dict()[name]
    for down, right in itertools.product(range(-3, 4), repeat=2):
        assert torch.equal(cut[(down + 3) * 7 + right + 3], official[(down + 7) * 15 + right + 7])
    assert narrow(torch.randn(1, 3, 8, 8), torch.tensor([3]), torch.randn(1, 3, 8, 8)).isfinite().all()


def test_official_shapes_load_at_the_size_of_stage_1() -> None:
    """The released teacher, 64 latent pixels wide, into the network of the reduced-scale preset, 32 wide."""
    with torch.device("meta"):
        released = SwinUNet()
        reduced = build_network(preset("sinsr-stage1").trial.network)
    state = {name: torch.zeros(tensor.shape) for name, tensor in released.state_dict().items()}
    reduced.to_empty(device="cpu").load_official_state_dict(state)
