"""The base that ships with the project: what it is made of, what it reaches, and that its recipe makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from trainables.assets.crops import Crops, CropSettings
from trainables.assets.held_out import colour_error
from trainables.assets.stable_diffusion import (
    BaseAutoencoderRecipe,
    BaseUNetRecipe,
    base_scheduler,
    draw_empty_prompt,
    encode_crops,
    new_autoencoder,
    noise_errors,
    train_base_autoencoder,
    train_base_unet,
)
from trainables.images.pairs import Pairs
from trainables.images.sources.photographs import load_photographs
from trainables.metrics import psnr
from trainables.networks.autoencoder import decode, encode, load_vq_f4
from trainables.pretrained.base_model import SHIPPED_BASE, load_unet, load_vae
from trainables.pretrained.prompt_encoder import load_empty_prompt
from trainables.pretrained.shipped import SHIPPED_AUTOENCODER
from trainables.settings import SAMPLE
from trainables.settings.presets import preset

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def held_out() -> Tensor:
    """(48, 3, 64, 64) in [-1, 1]: the sample's validation targets."""
    pairs = Pairs(load_photographs(SAMPLE, "validation"), preset("sample").trial.pairs, "validation", 0)
    targets = torch.from_numpy(np.stack([pair.target for pair in pairs]))
    return targets.movedim(-1, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def crops() -> Crops:
    """Of the sample's training photographs: tests do not fetch those that the networks were trained on."""
    photographs = [Image.fromarray(photograph.pixels) for photograph in load_photographs(SAMPLE, "train")]
    return Crops(photographs, [], CropSettings())


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return load_vae(SHIPPED_BASE).requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return load_unet(SHIPPED_BASE).requires_grad_(False)


@pytest.fixture(scope="module")
def latents(vae: AutoencoderKL, held_out: Tensor) -> Tensor:
    return encode_crops(vae, held_out)


def test_the_folder_holds_the_base_and_nothing_else() -> None:
    files = {path.relative_to(SHIPPED_BASE).as_posix(): path for path in SHIPPED_BASE.rglob("*") if path.is_file()}
    assert set(files) == {
        "model_index.json",
        "empty_prompt.safetensors",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/{WEIGHTS}",
        "vae/config.json",
        f"vae/{WEIGHTS}",
    }
    assert sum(path.stat().st_size for path in files.values()) < 9.5e6


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_weights_are_half_precision_on_disk_and_single_in_memory(
    part: str, vae: AutoencoderKL, unet: UNet2DConditionModel
) -> None:
    with safe_open(SHIPPED_BASE / part / WEIGHTS, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118 - no mapping
    loaded = {"vae": vae, "unet": unet}[part]
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


def test_the_pipeline_of_diffusers_takes_the_folder() -> None:
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
    pipeline = StableDiffusionPipeline.from_pretrained(
        SHIPPED_BASE, dtype=torch.float32, requires_safety_checker=False, **absent
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt_embeds=load_empty_prompt(SHIPPED_BASE),
        guidance_scale=1.0,
        height=64,
        width=64,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert images.shape == (1, 64, 64, 3)
    assert 0.02 < images.std() < 0.5  # a picture: neither flat nor saturated


def test_the_noise_schedule_is_stable_diffusions() -> None:
    scheduler = DDIMScheduler.from_pretrained(SHIPPED_BASE, subfolder="scheduler")
    assert scheduler.config.prediction_type == "epsilon"
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, base_scheduler().alphas_cumprod)


def test_the_empty_prompt_is_the_one_of_its_seed(unet: UNet2DConditionModel) -> None:
    prompt = load_empty_prompt(SHIPPED_BASE)
    assert prompt.shape == (1, 2, unet.config.cross_attention_dim)
    torch.testing.assert_close(prompt, draw_empty_prompt())  # a processor's logarithms round as it likes


def test_autoencoders_keep_held_out_crops(vae: AutoencoderKL, held_out: Tensor, latents: Tensor) -> None:
    vq = load_vq_f4(SHIPPED_AUTOENCODER)
    with torch.no_grad():
        restored = vae.decode(latents).sample.clamp(-1, 1)
        quantised = decode(vq, encode(vq, held_out)).clamp(-1, 1)
    assert psnr(restored * 0.5 + 0.5, held_out * 0.5 + 0.5).mean() > 32
    assert psnr(quantised * 0.5 + 0.5, held_out * 0.5 + 0.5).mean() > 29
    assert max(colour_error(each, held_out) for each in (restored, quantised)) < 0.02


def test_scaled_latents_have_unit_deviation(vae: AutoencoderKL, crops: Crops, latents: Tensor) -> None:
    seen = encode_crops(vae, crops.batch(64, 64, 64, np.random.default_rng(5))) * vae.config.scaling_factor
    assert 0.8 < seen.std() < 1.25
    assert 0.7 < (latents * vae.config.scaling_factor).std() < 1.4


@pytest.mark.parametrize("timestep", [50, 200, 500, 800])
def test_noise_is_predicted_better_than_without_a_network(
    timestep: int, vae: AutoencoderKL, unet: UNet2DConditionModel, latents: Tensor
) -> None:
    scaled = latents * vae.config.scaling_factor
    errors = noise_errors(unet, base_scheduler(), scaled, load_empty_prompt(SHIPPED_BASE), timestep)
    assert errors["unet"] < 0.9 * min(errors["zero"], errors["input"], errors["scaled"])


def test_the_prior_depends_on_the_prompt_and_on_the_timestep(unet: UNet2DConditionModel, latents: Tensor) -> None:
    prompt = load_empty_prompt(SHIPPED_BASE)
    with torch.no_grad():
        expected = unet(latents[:1], 500, prompt).sample
        assert not torch.allclose(unet(latents[:1], 500, -prompt).sample, expected)
        assert not torch.allclose(unet(latents[:1], 100, prompt).sample, expected)


def test_training_is_repeatable(tmp_path: Path, crops: Crops) -> None:
    prompt, vae = draw_empty_prompt(), new_autoencoder((16, 32, 96))

    def train(name: str) -> list[Tensor]:
        folder = tmp_path / name
        folder.mkdir()
        trained = (
            train_base_autoencoder(crops, BaseAutoencoderRecipe(steps=1), folder, lambda line: None),
            train_base_unet(crops, vae, prompt, BaseUNetRecipe(steps=1, pool=64), folder, lambda line: None),
        )
        return [parameter for network in trained for parameter in network.parameters()]

    assert all(torch.equal(*parameters) for parameters in zip(train("a"), train("b"), strict=True))
