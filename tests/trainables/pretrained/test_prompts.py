"""Files of prompts: how they are written, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.bases import DIM, save_base, tiny_text_encoder
from trainables.common.errors import InputError
from trainables.pretrained.identity import base_identity, unequal
from trainables.pretrained.prompt_encoder import load_empty_prompt
from trainables.pretrained.prompts import check_prompts, load_prompts, pads_prompt
from trainables.prompts import main
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset


@pytest.fixture(scope="module")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("text_base"), text=True)


def test_command_writes_what_training_reads(
    text_base: Path, tiny: TrialSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.safetensors"
    assert main([str(text_base), str(file), "--positive", "a b", "--negative", "b " * 20]) == 0
    shown = capsys.readouterr().out
    assert "positive   4 tokens\n" in shown and "negative   8 tokens, cut: the text has more\n" in shown
    assert f"--set base.prompts={file}" in shown
    encoder = tiny_text_encoder()
    encoder.load_state_dict(load_file(text_base / "text_encoder/model.safetensors"))
    with torch.no_grad():  # start, a, b, end, padded with the end to the tokenizer's length of 8
        expected = encoder(torch.tensor([[4, 2, 3, 5, 5, 5, 5, 5], [4, 5, 5, 5, 5, 5, 5, 5]])).last_hidden_state
    found = load_prompts(
        override(tiny, {"method": "one_step", "base.weights": str(text_base), "base.prompts": str(file)})
    )
    torch.testing.assert_close(found.positive, expected[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.empty, expected[1:], rtol=0, atol=1e-6)
    assert found.negative.shape == (1, 8, DIM)
    assert load_empty_prompt(text_base).shape == (1, 2, DIM)
    assert torch.equal(load_empty_prompt(text_base, padded=True), found.empty)


def test_empty_prompt_is_padded_if_asked(text_base: Path, base: Path, tiny: TrialSettings, tmp_path: Path) -> None:
    """A computed one, and its weights know; that of a file stays as it is."""
    plain = override(tiny, {"method": "latent_diffusion", "base.weights": str(text_base)})
    padded = override(plain, {"base.padded_prompt": True})
    assert load_prompts(plain).positive.shape == (1, 2, DIM)
    found = load_prompts(padded)
    assert (
        found.positive.shape == found.negative.shape == found.empty.shape == (1, 8, DIM)
    )  # 77 with a public tokenizer
    assert pads_prompt(padded)
    difference = unequal(base_identity(plain), base_identity(padded))
    assert difference == "does not match: base's prompt is padded is None in the file and True in the settings"

    of_file = override(padded, {"base.weights": str(base)})
    assert load_prompts(of_file).positive.shape == (1, 2, DIM) and not pads_prompt(of_file)
    assert base_identity(of_file) == base_identity(override(plain, {"base.weights": str(base)}))

    file = tmp_path / "prompts.safetensors"
    assert main([str(text_base), str(file), "--positive", "a"]) == 0
    assert not pads_prompt(override(padded, {"base.prompts": str(file)}))
    file.unlink()
    assert main([str(text_base), str(file), "--negative", "a"]) == 0
    negative = override(padded, {"base.prompts": str(file)})
    assert pads_prompt(negative) and load_prompts(negative).positive.shape == (1, 8, DIM)


@pytest.mark.parametrize(
    ("name", "padded"),
    [
        *((name, True) for name in ("stablesr", "ccsr-stage1", "ccsr-stage2", "osediff", "pisasr")),
        *((name, False) for name in ("marigold", "print-to-camera", "sample", "sample-print")),
    ],
)
def test_presets_pad_as_published(name: str, padded: bool) -> None:
    assert preset(name).trial.base.padded_prompt is padded


def test_command_refuses(text_base: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there.safetensors"
    there.touch()
    new = str(tmp_path / "new.safetensors")
    for arguments, message in (
        ([str(text_base), new], "--positive TEXT or --negative TEXT: none given"),
        ([str(text_base), str(there), "--positive", "a"], f"FILE {there}: already exists"),
        ([str(text_base), str(tmp_path / "new.pt"), "--positive", "a"], "expected a name that ends in .safetensors"),
        ([str(base), new, "--positive", "a"], f"BASE {base}: has no text_encoder/ and tokenizer/"),
        ([str(tmp_path / "nowhere"), new, "--positive", "a"], "BASE="),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_unfit_files_are_refused(base: Path, tiny: TrialSettings, tmp_path: Path) -> None:
    file = tmp_path / "prompts.safetensors"
    settings = override(tiny, {"method": "one_step", "base.weights": str(base), "base.prompts": str(file)})

    def refused() -> str:
        with pytest.raises(InputError) as error:
            check_prompts(settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    prompt = torch.zeros(1, 4, DIM)
    assert refused().startswith(f"base.prompts={file}: no such file; expected a .safetensors file with positive")
    file.write_bytes(b"no prompts")
    assert "cannot be read" in refused()
    save_file({"empty": prompt}, file)
    assert "has neither positive nor negative" in refused()
    save_file({"positive": prompt, "other": prompt.clone()}, file)
    assert "has a tensor 'other'; expected" in refused()
    save_file({"positive": prompt, "negative": torch.zeros(1, 5, DIM)}, file)
    assert f"negative (1, 5, {DIM})" in refused() and f"expected one shape (1, tokens, {DIM})" in refused()
    save_file({"positive": torch.zeros(1, 4, DIM + 1)}, file)
    assert f"positive (1, 4, {DIM + 1}); expected one shape (1, tokens, {DIM})" in refused()
    save_file({"positive": prompt / 0}, file)
    assert "positive has infinite or NaN values; expected finite ones" in refused()
    save_file({"positive": prompt}, file)
    check_prompts(settings)


def test_a_computed_prompt_is_identified_by_what_computes_it(text_base: Path, tiny: TrialSettings) -> None:
    """Its numbers differ between processors, so that a trial would be refused on another machine."""
    settings = override(tiny, {"method": "latent_diffusion", "base.weights": str(text_base)})
    found = base_identity(settings)
    assert "base's text encoder" in found and "base's prompt" not in found
    earlier = {name: value for name, value in found.items() if name != "base's text encoder"} | {"base's prompt": "0"}
    assert unequal(earlier, found) == ""
    encoder = text_base / "text_encoder" / "model.safetensors"
    weights = load_file(encoder)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, encoder, metadata={"format": "pt"})
    try:
        assert "base's text encoder is " in unequal(found, base_identity(settings))
    finally:
        save_file(weights, encoder, metadata={"format": "pt"})
