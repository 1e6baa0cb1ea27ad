"""The trainings that are compared with public code: settings, initial weights and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.bases import scheduler, tiny_unet, tiny_vae
from tests.helpers.curves import STEPS, images, normal, uniform, weights
from tests.helpers.paths import EXPECTED
from trainables.diffusion.noise import coarse_levels
from trainables.images.tensors import upsample
from trainables.methods.method import Method
from trainables.pretrained.base_model import read_shape
from trainables.pretrained.resshift import build_network
from trainables.settings import NetworkSettings, ResShiftSettings
from trainables.settings.presets import preset
from trainables.settings.published import OSEDIFF as OSEDIFF_PRESET


@dataclass(frozen=True)
class Curve:
    """Attributes:
    settings: of the trial, given a folder for the files of its initial weights.
    batch: of a step, given the method.
    start: sets initial weights that no file holds.
    expected: name of the training in the file of losses, if it is not the curve's.
    """

    settings: Callable[[Path], dict[str, Any]]
    batch: Callable[[Method, int], dict[str, Tensor]]
    start: Callable[[Method], None] = lambda method: None
    expected: str = ""


TRAINING: dict[str, Any] = {
    "training.max_steps": STEPS,
    "training.batch_size": 2,
    "training.accumulate": 2,
    "training.warmup_steps": 0,
    "training.schedule": "constant",
    "training.ema_decay": 0.0,
    "training.log_every": 1,
}

# ResShift and SinSR
SWIN: dict[str, Any] = {
    "pairs.image_size": 32,
    "pairs.scale": 4,
    "network.image_size": 8,
    "network.latent_channels": 3,
    "network.model_channels": 32,
    "network.channel_mult": (1,),
    "network.num_res_blocks": (1,),
    "network.attention_resolutions": (8,),
    "network.num_head_channels": 16,
    "network.swin_depth": 2,
    "network.swin_embed_dim": 32,
    "network.window_size": 4,
    "network.mlp_ratio": 2.0,
    "training.learning_rate": 2e-4,
    "training.ema_decay": 0.9,
    "training.ema_warmup": False,
    **{f"resshift.{name}": value for name, value in ResShiftSettings().schedule.items()},  # published
}
FEWER_STEPS = {"resshift.steps": 4, "resshift.min_noise_level": 0.2}


def autoencoder(folder: Path) -> dict[str, Any]:
    stored = load_file(EXPECTED / "parity_vq.safetensors")
    state = {k.removeprefix("weights/"): v.float() for k, v in stored.items() if k.startswith("weights/")}
    # With few codes, rounding seldom decides which one is nearest.
    state["quantize.embedding.weight"] = state["quantize.embedding.weight"][:8]
    path = folder / "autoencoder_vq_f4.pth"
    torch.save(state, path)
    return {"autoencoder.weights": str(path)}


def photographs(step: int) -> dict[str, Tensor]:
    return {"target": images("target", step, 2, 3, 32, 32), "degraded": images("degraded", step, 2, 3, 8, 8)}


def start_swin(method: Method) -> None:
    (network,) = method.networks.values()
    network.load_state_dict(weights("swin", network.state_dict()))


def teacher(folder: Path) -> dict[str, Any]:
    """A file of the weights from which the student starts."""
    network = NetworkSettings(**{k.removeprefix("network."): v for k, v in SWIN.items() if k.startswith("network.")})
    path = folder / "teacher.pth"
    torch.save(weights("swin", build_network(network).state_dict()), path)
    return {"teacher.weights": str(path)}


@torch.no_grad()
def resshift_batch(method: Any, step: int) -> dict[str, Tensor]:
    batch = photographs(step)
    return {
        **batch,
        "latent": method.autoencoder.encode(batch["target"]),
        "latent_degraded": method.autoencoder.encode(upsample(batch["degraded"], 4)),
        "fresh_noise": normal("fresh_noise", step, 2, 3, 8, 8),
        "uniform": uniform("uniform", step, 2),
    }


def sinsr_batch(method: Method, step: int) -> dict[str, Tensor]:
    return {**photographs(step), "fresh_noise": normal("fresh_noise", step, 2, 3, 8, 8)}


# Pix2Pix, as published: batch normalisation over batches of one image. The generator runs twice per step in our loop,
# which dropout would show.
PIX2PIX: dict[str, Any] = {
    "method": "pix2pix",
    "pairs.image_size": 64,
    "pairs.scale": 1,
    "pix2pix.ngf": 4,
    "pix2pix.downs": 6,
    "pix2pix.norm": "batch",
    "pix2pix.dropout": False,
    "pix2pix.l1": 100.0,
    "discriminator.ndf": 4,
    "discriminator.layers": 3,
    "perceptual.weight": 0.0,
    "training.optimiser": "adam",
    "training.beta1": 0.5,
    "training.accumulate": 1,
    "training.updates": 2,
    "training.learning_rate": 2e-4,
}


def pix2pix_batch(method: Method, step: int) -> dict[str, Tensor]:
    return {name: images(name, step, 2, 3, 64, 64) for name in ("target", "degraded")}


def start_by_names(method: Method, *names: str) -> None:
    for name in names or method.networks:
        network = method.networks[name]
        network.load_state_dict(weights(name, dict(network.named_parameters())), strict=False)


# StableSR's first half
STABLESR: dict[str, Any] = {
    "method": "stablesr",
    "pairs.image_size": 32,
    "stablesr.width": 32,
    "stablesr.layers": 1,
    "stablesr.modulation": "spade",
    "diffusion.reconstruction_weight": 0.0,
    "perceptual.weight": 0.0,
    "training.learning_rate": 2e-4,
    "training.weight_decay": 0.01,
}
CCSR: dict[str, Any] = {
    **STABLESR,
    "method": "controlnet_diffusion",
    "controlnet.condition": "latent",
    "diffusion.objective": "ccsr",
    "diffusion.inference_steps": 45,
    "training.accumulate": 1,
}
# ControlNet on images of 64 pixels: its published embedding divides their sides by 8. In 30 steps the published weight
# decay changes a loss by less than the limit, so it is larger here and below.
CONTROLNET: dict[str, Any] = {
    "method": "controlnet_diffusion",
    "pairs.image_size": 64,
    "pairs.scale": 1,
    "controlnet.condition": "image",
    "controlnet.embedding_channels": (16, 32, 96, 256),
    "diffusion.reconstruction_weight": 0.0,
    "perceptual.weight": 0.0,
    "training.learning_rate": 2e-4,
    "training.weight_decay": 1.0,
    "training.clip_gradient": 0.2,
}
# InstructPix2Pix's LoRA. Its first convolution has 8 channels already, and it is frozen.
INSTRUCT: dict[str, Any] = {
    "method": "latent_diffusion",
    "pairs.image_size": 32,
    "lora.rank": 4,
    "lora.scale": 1.0,
    "lora.targets": ("to_k", "to_q", "to_v", "to_out.0"),
    "conv_in.frozen": True,
    "diffusion.reconstruction_weight": 0.0,
    "perceptual.weight": 0.0,
    "training.learning_rate": 1e-4,
    "training.weight_decay": 1.0,
}
# The same with the first convolution widened, as InstructPix2Pix does without a LoRA, and trained.
INSTRUCT_WIDENED: dict[str, Any] = {
    **INSTRUCT,
    "conv_in.init": "zeros",
    "conv_in.frozen": False,
    "training.schedule": "cosine",
}
MARIGOLD: dict[str, Any] = {
    "method": "latent_diffusion",
    "pairs.image_size": 32,
    "lora.rank": 0,
    "conv_in.init": "duplicate",
    "diffusion.zero_terminal_snr": True,
    "diffusion.multi_resolution": 0.9,
    "diffusion.reconstruction_weight": 0.0,
    "diffusion.inference_steps": 4,
    "perceptual.weight": 0.0,
    "training.optimiser": "adam",
    "training.batch_size": 1,
    "training.accumulate": 1,
    "training.learning_rate": 3e-4,
    "training.schedule": "exponential",
    "training.decay_end": 25 / 30,
    "training.final_rate": 0.01,
}


def wide_base(folder: Path) -> dict[str, Any]:
    """A base with the 32 groups of the public UNets."""
    unet = tiny_unet(
        block_out_channels=(32, 64), attention_head_dim=(2, 4), cross_attention_dim=16, norm_num_groups=32,
        use_linear_projection=True,
    )  # fmt: skip
    return base(folder, unet)


def base(folder: Path, unet: nn.Module, **schedule: Any) -> dict[str, Any]:
    unet.load_state_dict(weights("unet", unet.state_dict()))
    unet.save_pretrained(folder / "unet")  # type: ignore[operator]
    tiny_vae().save_pretrained(folder / "vae")
    scheduler(**({"prediction_type": "epsilon"} | schedule)).save_pretrained(folder / "scheduler")
    prompt = normal("prompt", 0, 1, 3, unet.config.cross_attention_dim)  # type: ignore[union-attr]
    save_file({"prompt": prompt}, folder / "empty_prompt.safetensors")
    return {"base.weights": str(folder)}


def image_base(folder: Path) -> dict[str, Any]:
    """A base whose autoencoder divides the sides of images by 8, as the public ones."""
    found = base(folder, tiny_unet())
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    tiny_vae(block_out_channels=(8,) * 4, **blocks).save_pretrained(folder / "vae")
    return found


def controlnet_batch(method: Method, step: int) -> dict[str, Tensor]:
    return latents(method, step) | {"degraded": images("degraded", step, 2, 3, 64, 64)}


def latents(method: Method, step: int) -> dict[str, Tensor]:
    names = method.columns(method.settings) - {"uniform"}
    return {name: normal(name, step, 2, 4, 8, 8) for name in names} | {"uniform": uniform("uniform", step, 2)}


def marigold_batch(method: Method, step: int) -> dict[str, Tensor]:
    """Timestep and noise as PyTorch draws them after a seed: timestep, white noise, then coarser noise."""
    generator, shape = torch.Generator().manual_seed(step), (1, 4, 8, 8)
    t = torch.randint(1000, (1,), generator=generator)
    return {
        "latent": normal("latent", step, *shape),
        "latent_degraded": normal("latent_degraded", step, *shape),
        "uniform": (t + 0.5) / 1000,
        "fresh_noise": torch.randn(shape, generator=generator),
        "coarse_noise": coarse_levels(shape, generator),
    }


# The decoders of StableSR and CCSR, trained on given latents of a first stage
DECODER: dict[str, Any] = {
    "pairs.image_size": 32,
    "pairs.scale": 1,
    "discriminator.ndf": 8,
    "discriminator.layers": 2,
    "perceptual.weight": 1.0,
    "perceptual.network": "st_lpips",
    "perceptual.every": 1,
    "training.optimiser": "adam",
    "training.beta1": 0.5,
    "training.beta2": 0.9,
    "training.batch_size": 1,
    "training.accumulate": 1,
    "training.learning_rate": 5e-5,
}


def decoder_base(folder: Path) -> dict[str, Any]:
    found = base(folder, tiny_unet())
    vae = tiny_vae(block_out_channels=(32, 32, 32), norm_num_groups=32)
    vae.load_state_dict(weights("vae", vae.state_dict()))
    vae.save_pretrained(folder / "vae")
    return found


def decoder_batch(method: Method, step: int) -> dict[str, Tensor]:
    pictures = {name: images(name, step, 1, 3, 32, 32) for name in ("target", "degraded")}
    return pictures | {"restored": normal("restored", step, 1, 4, 8, 8)}


# OSEDiff
OSEDIFF: dict[str, Any] = {
    "method": "one_step",
    "pairs.image_size": 32,
    "pairs.scale": 1,
    "lora.rank": 4,
    "lora.scale": 2.0,
    "lora.targets": OSEDIFF_PRESET.lora.targets,
    "one_step.timestep": 999,
    "one_step.l2": 1.0,
    "one_step.distillation": 1.0,
    "one_step.adversarial": 0.0,
    "one_step.score_rank": 4,
    "perceptual.weight": 2.0,
    "perceptual.network": "st_lpips",
    "perceptual.every": 1,
    "training.accumulate": 1,
    "training.learning_rate": 1e-4,
    "training.weight_decay": 0.01,
    "training.clip_gradient": 1.0,
}


def osediff(folder: Path) -> dict[str, Any]:
    found = base(folder, tiny_unet())
    vae = tiny_vae()
    vae.load_state_dict(weights("vae", vae.state_dict()))
    vae.save_pretrained(folder / "vae")
    return OSEDIFF | found


# PiSA-SR: its first convolution has a LoRA, ours trains as a whole, so here it does neither.
PISASR: dict[str, Any] = {
    **OSEDIFF,
    "one_step.timestep": 1,
    "one_step.train_conv_in": False,
    "one_step.distillation": 0.0,
    "one_step.dual": True,
    "one_step.pixel_steps": 12,
    "one_step.semantic_rank": 4,
    "training.learning_rate": 2e-5,
}


def prompted(folder: Path) -> dict[str, Any]:
    """PiSA-SR with score distillation between two prompts."""
    found = osediff(folder)
    dim = read_shape(folder).cross_attention_dim
    prompts = {name: normal(name, 0, 1, 3, dim) for name in ("positive", "negative")}
    save_file(prompts | {"empty": torch.zeros(1, 3, dim)}, folder / "prompts.safetensors")
    distilled = {"one_step.classifier_distillation": 1.0, "one_step.guidance": 7.5}
    return found | PISASR | distilled | {"base.prompts": str(folder / "prompts.safetensors")}


def start_lora(method: Method, only: str = "") -> None:
    """Sets the trained weights.

    Args:
        only: a part of the names of those to set; the others stay.
    """
    for name, network in method.networks.items():
        trained = {key: value for key, value in network.named_parameters() if value.requires_grad and only in key}
        network.load_state_dict(weights(name, trained), strict=False)


@torch.no_grad()
def osediff_batch(method: Any, step: int) -> dict[str, Tensor]:
    return {
        "target": images("target", step, 2, 3, 32, 32),
        "latent_degraded": method.autoencoder.encode(images("degraded", step, 2, 3, 32, 32)),
        "uniform": uniform("uniform", step, 2),
        "second_uniform": uniform("second_uniform", step, 2),
        "fresh_noise": normal("fresh_noise", step, 2, 4, 8, 8),
        "jump_noise": normal("jump_noise", step, 2, 4, 8, 8),
    }


CURVES = {
    "osediff": Curve(osediff, osediff_batch, start_lora),
    "pisasr": Curve(lambda folder: osediff(folder) | PISASR, osediff_batch, start_lora),
    "pisasr-csd": Curve(prompted, osediff_batch, start_lora),
    "stablesr_cfw": Curve(
        lambda folder: DECODER | decoder_base(folder) | {"method": "stablesr_cfw", "cfw.adversarial_start": 0},
        decoder_batch,
        start_by_names,
    ),
    "ccsr-stage2": Curve(
        lambda folder: DECODER | decoder_base(folder) | {"method": "ccsr", "ccsr.adversarial_start": 0},
        decoder_batch,
        lambda method: start_by_names(method, "discriminator"),
    ),
    "pix2pix": Curve(lambda folder: PIX2PIX, pix2pix_batch, start_by_names),
    "pix2pix, the preset's norm": Curve(
        lambda folder: PIX2PIX | {"pix2pix.norm": preset("print-to-camera").methods["pix2pix"]["pix2pix.norm"]},
        pix2pix_batch,
        start_by_names,
        expected="pix2pix",
    ),
    "stablesr": Curve(lambda folder: STABLESR | wide_base(folder), latents, start_by_names),
    "ccsr-stage1": Curve(lambda folder: CCSR | wide_base(folder), latents, start_by_names),
    "controlnet": Curve(lambda folder: CONTROLNET | image_base(folder), controlnet_batch, start_by_names),
    "instruct_pix2pix": Curve(lambda folder: INSTRUCT | base(folder, tiny_unet(in_channels=8)), latents, start_lora),
    "instruct_pix2pix-conv_in": Curve(
        lambda folder: INSTRUCT_WIDENED | base(folder, tiny_unet()),
        latents,
        lambda method: start_lora(method, ".lora_"),
    ),
    "marigold": Curve(
        lambda folder: MARIGOLD | base(folder, tiny_unet(), prediction_type="v_prediction"), marigold_batch
    ),
    "resshift": Curve(lambda folder: SWIN | autoencoder(folder) | {"method": "resshift"}, resshift_batch, start_swin),
    "resshift-journal": Curve(
        lambda folder: (
            SWIN
            | autoencoder(folder)
            | FEWER_STEPS
            | {
                "method": "resshift",
                "resshift.bounded": False,
                "resshift_loss.lpips": 1.0,
                "resshift_loss.network": "st_lpips",
                "training.schedule": "cosine",
                "training.final_rate": 0.4,
            }
        ),
        resshift_batch,
        start_swin,
    ),
    "sinsr": Curve(
        lambda folder: (
            SWIN | autoencoder(folder) | FEWER_STEPS | teacher(folder) | {"method": "sinsr", "sinsr.teaching": "online"}
        ),
        sinsr_batch,
    ),
}
