"""Should the degraded image enter by concatenation (Marigold), a ControlNet, or a time-aware encoder (StableSR)?

All predict the same as the base, over the lower half of the timesteps. The trained parameters differ, as they do in
practice: LoRA and the first convolution for concatenation, a copy of the base's encoder for ControlNet, an encoder of
its own with transforms of the base's features for StableSR.
"""

from __future__ import annotations

from search_spaces.space import Choice, Float, Point, SearchSpace


def _method(label: str, method: str) -> Point:
    return Point(label, {"method": method, "training.rate_factor": 1.0})


SPACE = SearchSpace(
    name="conditioning",
    question="Should the degraded image enter by concatenation, a ControlNet or a time-aware encoder?",
    method="latent_diffusion",
    preset="sample-print",
    parameters={
        "method": Choice(("latent_diffusion", "controlnet_diffusion", "stablesr")),
        "training.rate_factor": Float(0.1, 10.0, log=True),
    },
    points=(
        _method("concatenation", "latent_diffusion"),
        _method("ControlNet", "controlnet_diffusion"),
        _method("time-aware encoder", "stablesr"),
    ),
    proposals=4,
    fixed={"diffusion.prediction_type": "base", "diffusion.retarget": False, "diffusion.max_timestep": 500},
    objective="perceptual",
    controls=("bicubic", "input_latent", "autoencoder"),
)
