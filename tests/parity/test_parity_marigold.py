"""Marigold's parts: its own code against ours, with equal weights, images and noise."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from tests.helpers.bases import save_tokenizer, scheduler, tiny_text_encoder, tiny_unet, tiny_vae
from tests.helpers.parity import relative_error
from tests.helpers.paths import EXPECTED
from trainables.networks.stable_diffusion import decode_kl, encode_kl, predict, widen_conv_in
from trainables.pretrained.base_model import load_scheduler_config, load_unet, load_vae
from trainables.pretrained.prompt_encoder import load_empty_prompt

# Origin of the file: expected/README.md.
DATA = {name: torch.from_numpy(values) for name, values in np.load(EXPECTED / "marigold.npz").items()}


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> nn.Module:
    """Weights that depend on the names: normal numbers over the root of the fan-in, around 1 for normalisations."""
    for name, parameter in module.named_parameters():
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        draws = torch.from_numpy(generator.standard_normal(parameter.shape, dtype=np.float32))
        if parameter.ndim > 1:
            draws /= math.sqrt(parameter[0].numel())
        else:
            draws = 1 + 0.2 * draws if name.endswith("weight") else 0.1 * draws
        parameter.copy_(draws)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    parts = {"unet": (tiny_unet(), 1), "vae": (tiny_vae(), 2), "text_encoder": (tiny_text_encoder(), 3)}
    for part, (module, seed) in parts.items():
        fill(module, seed).save_pretrained(folder / part)
    scheduler().save_pretrained(folder / "scheduler")
    save_tokenizer(folder / "tokenizer")
    return folder


def test_conv_in(base: Path) -> None:
    unet = load_unet(base)
    widen_conv_in(unet, "duplicate")
    assert relative_error(unet.conv_in.weight, DATA["conv_in_weight"]) < 1e-5
    assert relative_error(unet.conv_in.bias, DATA["conv_in_bias"]) < 1e-5


def test_empty_prompt(base: Path) -> None:
    assert relative_error(load_empty_prompt(base), DATA["prompt"]) < 1e-5


@torch.no_grad()
def test_encode(base: Path) -> None:
    assert relative_error(encode_kl(load_vae(base), DATA["images"]), DATA["conditioning"]) < 1e-5


@torch.no_grad()
def test_decode(base: Path) -> None:
    """Marigold averages the decoded channels to a depth."""
    depth = decode_kl(load_vae(base), DATA["latents"][-1]).mean(dim=1, keepdim=True)
    assert relative_error(depth, DATA["depth"]) < 1e-5


@torch.no_grad()
def test_denoising(base: Path) -> None:
    """Three steps; the first from pure noise, with the trainer's zero-SNR schedule and trailing timesteps."""
    unet, vae, prompt = load_unet(base), load_vae(base), load_empty_prompt(base)
    widen_conv_in(unet, "duplicate")
    fill(unet, 4)  # instead of training; now the order of the latents matters
    conditioning, latents = encode_kl(vae, DATA["images"]), DATA["noise"]
    ddim = DDIMScheduler.from_config(
        load_scheduler_config(base), rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    ddim.set_timesteps(len(DATA["latents"]))
    assert torch.equal(ddim.timesteps, DATA["timesteps"])
    for t, output, expected in zip(ddim.timesteps, DATA["outputs"], DATA["latents"], strict=True):
        velocity = predict(unet, conditioning, latents, t, prompt)
        assert relative_error(velocity, output) < 1e-5
        latents = ddim.step(velocity, t, latents).prev_sample
        assert relative_error(latents, expected) < 1e-5
