"""The ControlNet and pixel methods against diffusers' own pipeline and sampler, with equal weights, inputs and
noise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline
from transformers import CLIPTokenizer

from tests.helpers.bases import save_tokenizer, tiny_text_encoder
from tests.helpers.parity import relative_error
from trainables.images.tensors import upsample
from trainables.methods.controlnet_diffusion import ControlNetDiffusion
from trainables.methods.pixel_diffusion import BETA_END, BETA_START, PixelDiffusion
from trainables.pretrained.base_model import load_unet, load_vae
from trainables.pretrained.prompt_encoder import load_empty_prompt
from trainables.settings import TrialSettings, override

CPU = torch.device("cpu")
STEPS = 5
TrialOf = Callable[[str], TrialSettings]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_controlnet_restores_as_diffusers_pipeline(spacing: str, trial_of: TrialOf, base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    changes = {"diffusion.inference_steps": STEPS, "diffusion.spacing": spacing}
    method = ControlNetDiffusion(override(trial_of("controlnet_diffusion"), changes), CPU)
    controlnet = method.networks["controlnet"].eval()
    with torch.no_grad():  # zero convolutions would hide the conditioning
        for parameter in controlnet.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    degraded, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 16, 16)

    save_tokenizer(tmp_path / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(
        base, subfolder="scheduler", timestep_spacing=spacing, set_alpha_to_one=True
    )
    pipeline = StableDiffusionControlNetPipeline(
        vae=load_vae(base),
        text_encoder=tiny_text_encoder(),
        tokenizer=CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"),
        unet=load_unet(base),
        controlnet=controlnet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        image=upsample(degraded, method.settings.pairs.scale) * 0.5 + 0.5,
        prompt_embeds=load_empty_prompt(base).expand(2, -1, -1),
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        latents=noise,
        output_type="latent",
    ).images
    ours = method.sample({"degraded": degraded, "latent_degraded": torch.zeros_like(noise), "noise": noise})
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_pixel_diffusion_restores_as_diffusers_sampler(prediction_type: str, trial_of: TrialOf) -> None:
    """In float64: the first estimate of x_0 from epsilon enlarges what is rounded, with this schedule 20,000 times.
    What is left, 6.6e-6, is rounding of diffusers' own schedule, a product in float32; with ours none is left."""
    torch.manual_seed(0)
    changes = {"diffusion.inference_steps": STEPS, "diffusion.prediction_type": prediction_type}
    method = PixelDiffusion(override(trial_of("pixel_diffusion"), changes), CPU)
    unet = method.networks["unet"].double().eval()
    degraded, noise = torch.rand(2, 3, 16, 16).double() * 2 - 1, torch.randn(2, 3, 64, 64).double()

    scheduler = DDIMScheduler(
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule=method.settings.pixel.beta_schedule,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(STEPS)
    theirs, condition = noise, upsample(degraded, method.settings.pairs.scale)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(torch.cat([condition, theirs], dim=1), t).sample
            theirs = scheduler.step(output, t, theirs).prev_sample
    ours = method.sample({"degraded": degraded, "noise": noise})
    assert relative_error(ours, theirs) < 1e-5
