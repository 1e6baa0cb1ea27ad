"""A finished trial is exported to diffusers' layout, where it gives the same outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from trainables.common.errors import InputError
from trainables.export import LORA, export, main
from trainables.methods.build import build_method
from trainables.pretrained.base_model import read_shape
from trainables.pretrained.finished_trial import SETTINGS
from trainables.settings import TrialSettings, override

TrialOf = Callable[[str], TrialSettings]
CPU = torch.device("cpu")


def test_exported_unet_predicts_the_same(first_stage: Path, trial_of: TrialOf, tmp_path: Path) -> None:
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
        theirs = unet(torch.cat([y, x_t], 1), t, encoder_hidden_states=method.prompts.positive).sample  # type: ignore[attr-defined]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_export_can_be_used_as_base_and_lora(first_stage: Path, trial_of: TrialOf, tmp_path: Path) -> None:
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


REFUSED: dict[str, tuple[str, str, str]] = {
    "no trial": ("{tmp}/nowhere", "{tmp}/new", "FINISHED .*nowhere: has no readable settings.json"),
    "another method": ("{tmp}/gan", "{tmp}/new", "FINISHED .*gan: a trial of pix2pix; expected a .* latent_diffusion"),
    "no weights": ("{tmp}/bare", "{tmp}/new", "checkpoint=.*bare: has no weights.safetensors"),
    "there": ("{trial}", "{tmp}/there", "FOLDER .*there: already exists; choose"),
    "below a file": ("{trial}", "{tmp}/file/new", "FOLDER .*: .*file is a file; expected a folder"),
    "a link": ("{trial}", "{tmp}/link", "FOLDER .*link: cannot be written"),
    "no name": ("{trial}", "", "FOLDER is empty"),
    "no trial named": ("", "{tmp}/new", "FINISHED is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_input_is_refused_in_one_line(
    case: str, first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "link").symlink_to("gone")
    for name, settings in (("gan", json.dumps({"method": "pix2pix"})), ("bare", (first_stage / SETTINGS).read_text())):
        (tmp_path / name).mkdir()
        (tmp_path / name / SETTINGS).write_text(settings)
    before = sorted(tmp_path.rglob("*"))
    finished, folder, message = REFUSED[case]
    places = {"tmp": tmp_path, "trial": first_stage}
    assert main([finished.format(**places), folder.format(**places)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert re.match(f"python -m trainables.export: error: {message}", shown.err), shown.err
    assert sorted(tmp_path.rglob("*")) == before


def test_invalid_lora_file_is_refused(trial_of: TrialOf, tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match=r"lora.weights=.*not a readable"):
        build_method(
            override(trial_of("latent_diffusion"), {"lora.weights": str(tmp_path / "adapter.safetensors")}), CPU
        )
