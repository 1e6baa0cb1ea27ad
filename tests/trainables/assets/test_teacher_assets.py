"""How the decoder of the shipped VQ-f4 and the ResShift teacher are trained on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainables.assets.__main__ import main
from trainables.assets.crops import Crops, CropSettings
from trainables.assets.decoder import DecoderRecipe, train_decoder
from trainables.assets.held_out import held_out_crops
from trainables.assets.teacher import FIRST, SECOND, TeacherRecipe, teacher_settings, train_teacher
from trainables.images.sources.photographs import load_photographs
from trainables.networks.autoencoder import load_vq_f4
from trainables.pretrained.shipped import SHIPPED_AUTOENCODER, SHIPPED_TEACHER
from trainables.settings import SAMPLE, ResShiftSettings


@pytest.fixture(scope="module")
def crops() -> Crops:
    """Of the sample's training photographs: tests do not fetch those that the networks were trained on."""
    photographs = [Image.fromarray(photograph.pixels) for photograph in load_photographs(SAMPLE, "train")]
    return Crops(photographs, [], CropSettings(tries=SECOND.tries, blur=SECOND.blur))


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two crops to measure on, instead of eight of each photograph."""
    few = held_out_crops(1)[:2]
    for module in ("decoder", "teacher"):
        monkeypatch.setattr(f"trainables.assets.{module}.held_out_crops", lambda each: few)


def test_decoder_is_trained_and_the_latents_stay(tmp_path: Path, crops: Crops) -> None:
    before = load_vq_f4(SHIPPED_AUTOENCODER).state_dict()
    recipe = DecoderRecipe(steps=2, learning_rate=1e-2)

    def train(name: str) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir()
        model = train_decoder(crops, load_vq_f4(SHIPPED_AUTOENCODER), recipe, tmp_path / name, lambda line: None)
        return dict(model.state_dict())

    after, again = train("a"), train("b")
    assert all(torch.equal(after[name], again[name]) for name in before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"post_quant_conv", "decoder"}


@pytest.mark.parametrize("recipe", [FIRST, SECOND], ids=lambda recipe: recipe.name)
def test_teacher_is_trained_on_from_given_weights(tmp_path: Path, crops: Crops, recipe: TeacherRecipe) -> None:
    autoencoder = load_vq_f4(SHIPPED_AUTOENCODER).requires_grad_(False)
    start = load_file(SHIPPED_TEACHER)
    short = replace(recipe, steps=1, pool=8)

    def train(name: str, recipe: TeacherRecipe) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir()
        settings = teacher_settings(SHIPPED_AUTOENCODER, recipe.published)
        trained = train_teacher(crops, autoencoder, settings, recipe, tmp_path / name, lambda line: None, start)
        return dict(trained.state_dict())

    after, again = train("a", short), train("b", short)
    assert all(torch.equal(after[name], again[name]) for name in start)
    far = [name for name in start if not torch.allclose(after[name], start[name].float(), atol=1e-3)]
    assert not far  # one step of the rate's warm-up
    assert any(not torch.equal(after[name], start[name].float()) for name in start)
    terms = (
        replace(short, noisiest_weight=1.0, noisiest_share=1.0, cleanest_share=0.0),
        replace(short, cleanest_weight=1.0, cleanest_share=1.0),
    )
    for number, other in enumerate(terms):
        plain = replace(other, noisiest_weight=0.0, cleanest_weight=0.0)
        trained = train(f"term {number}", other), train(f"plain {number}", plain)
        assert any(not torch.equal(trained[0][name], trained[1][name]) for name in start)


def test_first_part_has_the_published_schedule() -> None:
    published = teacher_settings(SHIPPED_AUTOENCODER, published=True).resshift
    assert published.schedule == ResShiftSettings().schedule
    assert teacher_settings(SHIPPED_AUTOENCODER).resshift.schedule != published.schedule


def test_crops_out_of_focus_have_less_detail(crops: Crops) -> None:
    photographs, cut_outs = crops._photographs, crops._cut_outs

    def detail(settings: CropSettings) -> float:
        batch = Crops(photographs, cut_outs, settings).batch(24, 64, 64, np.random.default_rng(1))
        return float((batch[..., 1:] - batch[..., :-1]).abs().mean())

    sharp = CropSettings(cut_out=0.0, tone=0.0)
    assert detail(replace(sharp, blur=1.0)) < 0.5 * detail(sharp)


def test_a_second_part_continues_from_its_own_checkpoint(tmp_path: Path, crops: Crops) -> None:
    autoencoder = load_vq_f4(SHIPPED_AUTOENCODER).requires_grad_(False)
    settings, start = teacher_settings(SHIPPED_AUTOENCODER), load_file(SHIPPED_TEACHER)
    recipe = replace(SECOND, steps=1, pool=8, learning_rate=1.0)
    lines = list[str]()
    ended = train_teacher(crops, autoencoder, settings, recipe, tmp_path, lines.append, start).state_dict()
    again = train_teacher(crops, autoencoder, settings, recipe, tmp_path, lines.append, start).state_dict()
    assert lines[-1] == "teacher_second: continuing at step 1 of 1"
    assert all(torch.equal(ended[name], again[name]) for name in start)
    assert any(not torch.equal(ended[name], start[name].float()) for name in start)


def test_parts_are_told_when_an_earlier_one_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(*parts: str) -> str:
        with patch.object(sys, "argv", ["assets", *parts, "--work", str(tmp_path)]), pytest.raises(SystemExit):
            main()
        return capsys.readouterr().err

    assert "vq_f4_first.safetensors is missing; run the part autoencoder first" in build("decoder")
    assert "resshift_first.safetensors is missing; run the part teacher first" in build("teacher-second")
    (tmp_path / "resshift_sample.safetensors").touch()
    assert "has resshift_sample.safetensors without resshift_first.safetensors, as an earlier" in build("measure")
