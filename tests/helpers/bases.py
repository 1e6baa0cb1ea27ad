"""Bases small enough to build in a test, in the layout of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

DIM = 32  # cross_attention_dim


def tiny_unet(**changed: Any) -> UNet2DConditionModel:
    shape = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": DIM,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(shape | changed)).eval()


def tiny_vae(**changed: Any) -> AutoencoderKL:
    """Three levels: latents with a quarter of the image's side."""
    shape = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.18215,
    }
    return AutoencoderKL(**(shape | changed)).eval()


def tiny_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=6,
            hidden_size=DIM,
            intermediate_size=2 * DIM,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=8,
            bos_token_id=4,
            eos_token_id=5,
        )
    ).eval()


def save_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer with two letters, in the two files of the public checkpoints."""
    folder.mkdir(parents=True)
    words = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder, model_max_length=8).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()


def scheduler(**changed: Any) -> DDIMScheduler:
    """Stable Diffusion 2's schedule."""
    shape = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "v_prediction",
    }
    return DDIMScheduler(**(shape | changed))


def save_base(folder: Path, text: bool = False) -> Path:
    """A base with a text encoder and tokenizer (`text`) or with `empty_prompt.safetensors`."""
    tiny_unet().save_pretrained(folder / "unet")
    tiny_vae().save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    if text:
        tiny_text_encoder().save_pretrained(folder / "text_encoder")
        save_tokenizer(folder / "tokenizer")
    else:
        save_file({"prompt": torch.randn(1, 2, DIM)}, folder / "empty_prompt.safetensors")
    return folder
