"""A finished trial leaves in diffusers' layout, and computes there what it computed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from trainables.base_model import read_shape
from trainables.build import build_method
from trainables.errors import InputError
from trainables.export import LORA, export
from trainables.settings import TrialSettings, override

TrialOf = Callable[[str], TrialSettings]
CPU = torch.device("cpu")


def test_what_is_exported_predicts_what_the_trial_did(first_stage: Path, trial_of: TrialOf, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export(first_stage, folder)
    trial = trial_of("latent_diffusion")
    method = build_method(override(trial, {"checkpoint": str(first_stage)}), CPU)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert not [name for name in unet.state_dict() if "lora" in name]
    AutoencoderKL.from_pretrained(folder / "vae")
    assert DDIMScheduler.from_pretrained(folder / "scheduler").config.prediction_type == "v_prediction"

    torch.manual_seed(0)
    y, x_t, t = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.tensor([300])
    method.networks.eval()
    with torch.no_grad():
        ours = method.denoiser({"latent_degraded": y})(x_t, t)  # type: ignore[attr-defined]
        theirs = unet(torch.cat([y, x_t], 1), t, encoder_hidden_states=method.prompt).sample  # type: ignore[attr-defined]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_exported_is_a_base_and_a_start(first_stage: Path, trial_of: TrialOf, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export(first_stage, folder)
    assert read_shape(folder).in_channels == 8
    trial = trial_of("latent_diffusion")
    build_method(override(trial, {"base.weights": str(folder)}), CPU)

    started = build_method(override(trial, {"lora.weights": str(folder / LORA)}), CPU).networks.state_dict()
    adapter = load_file(folder / LORA)
    name = next(name for name in adapter if name.endswith(".lora.up.weight"))
    own = name.replace(".lora.up.", ".lora_B.default.")
    assert adapter[name].any() and torch.equal(started[own], adapter[name])


@pytest.mark.parametrize(("at", "message"), [("nowhere", "no settings.json"), ("there", "is there already")])
def test_export_refuses(at: str, message: str, first_stage: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=message):
        export(tmp_path / "nowhere" if at == "nowhere" else first_stage, tmp_path / ("new" if at == "nowhere" else at))


def test_an_adapter_that_is_none_is_refused(trial_of: TrialOf, tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match=r"lora.weights=.*not a readable"):
        build_method(
            override(trial_of("latent_diffusion"), {"lora.weights": str(tmp_path / "adapter.safetensors")}), CPU
        )
